// What the launchers share: types of the C interface, the device guard and the launch itself. Everything here
// is plain CUDA runtime; no torch header, so the library has no ABI to match and loads on a machine without a
// GPU.
//
// tests/cuda/emulator.h defines FASTPOWER_EMULATOR and stands in for the CUDA headers: the kernels then
// compile with a host compiler and run thread by thread on the CPU, which is how their logic is tested where
// there is no GPU.
#pragma once

#include <cstdint>

#ifndef FASTPOWER_EMULATOR
#include <cuda_runtime.h>
#endif

#define FASTPOWER_API extern "C" __attribute__((visibility("default")))
#include "../../fastpower/include/fastpower.h"  // what is defined below is what engines are told

namespace fastpower {

// Codes of the C interface, the same in fastpower/kernels/cuda.py.
enum Dtype : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// Launches belong to the device the tensors live on, whatever device the caller has made current.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    error_ = cudaGetDevice(&previous_);
    if (error_ != cudaSuccess || previous_ == device) return;
    error_ = cudaSetDevice(device);
    moved_ = error_ == cudaSuccess;
  }
  // Only what was changed is put back: a call costs time, and would choose GPU 0 after an error.
  ~DeviceGuard() {
    if (moved_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  cudaError_t error() const { return error_; }

 private:
  int previous_ = 0;
  bool moved_ = false;
  cudaError_t error_;
};

// Largest one-dimensional grid.
constexpr int64_t kMaxGrid = 2147483647;

#ifndef FASTPOWER_EMULATOR
// 2^x in one instruction, relative error 2^-22, 0 below 2^-126 and for −inf, 1 at 0.
__device__ inline float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The value of IEEE binary16 bits.
__device__ inline float half_bits_to_float(uint16_t bits) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(bits));
  return y;
}

// IEEE binary16 bits of a value, rounded to nearest even.
__device__ inline uint16_t float_to_half_bits(float x) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}

template <typename... Params, typename... Args>
cudaError_t launch(void (*kernel)(Params...), int64_t grid, int threads, void* stream, Args... args) {
  kernel<<<static_cast<unsigned>(grid), threads, 0, static_cast<cudaStream_t>(stream)>>>(args...);
  return cudaGetLastError();
}
#endif

}  // namespace fastpower
