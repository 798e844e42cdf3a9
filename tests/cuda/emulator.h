// A CUDA device in 150 lines: enough of the language and the runtime to run csrc/cuda on the CPU, one fibre
// per thread. Compiled with `g++ -include emulator.h`, the kernels' own source is tested where there is no
// GPU.
//
// A fibre runs until it synchronises. Between two synchronisation points fibres run in an order that tests
// choose (emulator_order), so a missing barrier shows as a result that depends on the order. Threads that
// wait at different barriers, or at a barrier that others have left the kernel without reaching, fail the
// launch.
//
// Not emulated: rounding of the device's exp2 and fused multiply-adds, memory alignment, concurrency of
// thread blocks.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#define FASTPOWER_EMULATOR
#define __global__
#define __device__
#define __launch_bounds__(...)
#define __shared__ static  // thread blocks run one after the other, and find what the last one left
#define __syncthreads() emulator::wait(false, __LINE__)
#define __shfl_xor_sync(mask, x, offset) emulator::shuffle(x, emulator::lane() ^ (offset), __LINE__)
#define __shfl_up_sync(mask, x, offset) emulator::shuffle(x, emulator::lane() - (offset), __LINE__)

using cudaError_t = int;
constexpr int cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMisalignedAddress = 716,
              cudaErrorLaunchFailure = 719;
namespace emulator {
inline int current_device = 0, device_changes = 0;
}
inline cudaError_t cudaGetDevice(int* device) { return *device = emulator::current_device, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) {
  if (device < 0) return cudaErrorInvalidValue;
  ++emulator::device_changes;
  return emulator::current_device = device, cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess              ? "no error"
         : error == cudaErrorLaunchFailure ? "unspecified launch failure"
                                           : "invalid";
}

struct Index {
  unsigned x = 0;
};
inline Index threadIdx, blockIdx;

inline int atomicOr(int* address, int value) {
  const int old = *address;
  *address |= value;
  return old;
}
inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// 0: ascending, 1: descending, else the seed of a shuffle. Weak: one variable for all sources of a library.
extern "C" {
__attribute__((weak)) unsigned emulator_order = 0;
}

inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }

namespace emulator {

struct Fibre {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[1 << 16]};
  enum { kReady, kWarp, kBlock, kDone } state;
  int line;
};

inline std::vector<Fibre> fibres;
inline ucontext_t scheduler;
inline std::function<void()> body;
inline uint64_t exchanged[1024];

inline int lane() { return static_cast<int>(threadIdx.x % 32); }

inline void wait(bool warp, int line) {
  Fibre& own = fibres[threadIdx.x];
  own.state = warp ? Fibre::kWarp : Fibre::kBlock;
  own.line = line;
  swapcontext(&own.context, &scheduler);
}

// A source lane outside the warp leaves x as it is, as the hardware does.
template <typename T>
T shuffle(T x, int source, int line) {
  const unsigned first = threadIdx.x / 32 * 32;
  std::memcpy(&exchanged[threadIdx.x], &x, sizeof(T));
  wait(true, line);
  if (source >= 0 && source < 32) std::memcpy(&x, &exchanged[first + source], sizeof(T));
  wait(true, line);
  return x;
}

inline void enter() {
  body();
  fibres[threadIdx.x].state = Fibre::kDone;
}

// Releases [first, end) if all of them wait at the same barrier of this kind.
inline bool release(int first, int end, int state) {
  for (int i = first; i < end; ++i)
    if (fibres[i].state != state || fibres[i].line != fibres[first].line) return false;
  for (int i = first; i < end; ++i) fibres[i].state = Fibre::kReady;
  return true;
}

inline bool run_block(int threads) {
  std::vector<int> turn(threads);
  std::iota(turn.begin(), turn.end(), 0);
  if (emulator_order == 1) std::reverse(turn.begin(), turn.end());
  if (emulator_order > 1) std::shuffle(turn.begin(), turn.end(), std::mt19937(emulator_order));
  std::vector<std::vector<int>> warps(threads / 32);
  for (int i : turn) warps[i / 32].push_back(i);
  std::sort(warps.begin(), warps.end(), [&](const auto& a, const auto& b) {
    return std::find(turn.begin(), turn.end(), a[0]) < std::find(turn.begin(), turn.end(), b[0]);
  });
  if (static_cast<int>(fibres.size()) < threads) fibres.resize(threads);
  for (int i = 0; i < threads; ++i) {
    getcontext(&fibres[i].context);
    fibres[i].context.uc_stack.ss_sp = fibres[i].stack.get();
    fibres[i].context.uc_stack.ss_size = 1 << 16;
    fibres[i].context.uc_link = &scheduler;
    fibres[i].state = Fibre::kReady;
    makecontext(&fibres[i].context, enter, 0);
  }
  for (;;) {
    bool progress = false;
    for (const auto& lanes : warps) {  // a warp runs as far ahead of the others as barriers let it
      const int first = lanes[0] / 32 * 32;
      do {
        for (int i : lanes) {
          if (fibres[i].state != Fibre::kReady) continue;
          threadIdx.x = i;
          swapcontext(&scheduler, &fibres[i].context);
          progress = true;
        }
      } while (release(first, first + 32, Fibre::kWarp));
    }
    progress |= release(0, threads, Fibre::kBlock);
    if (std::all_of(fibres.begin(), fibres.begin() + threads,
                    [](auto& f) { return f.state == Fibre::kDone; }))
      return true;
    if (!progress) return false;
  }
}

}  // namespace emulator

namespace fastpower {

inline float exp2_approx(float x) {
  const float y = std::exp2(x);
  return y < 1.17549435e-38f ? 0.0f : y;
}

inline float half_bits_to_float(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const float magnitude = exponent == 31 ? (fraction ? NAN : INFINITY)
                          : exponent     ? std::ldexp(1024.0f + fraction, exponent - 25)
                                         : std::ldexp(static_cast<float>(fraction), -24);
  return bits >> 15 ? -magnitude : magnitude;
}

inline uint16_t float_to_half_bits(float x) {
  const _Float16 half = static_cast<_Float16>(x);
  uint16_t bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}

template <typename... Params, typename... Args>
cudaError_t launch(void (*kernel)(Params...), int64_t grid, int threads, void*, Args... args) {
  emulator::body = [&] { kernel(args...); };
  for (int64_t block = 0; block < grid; ++block) {
    blockIdx.x = static_cast<unsigned>(block);
    if (!emulator::run_block(threads)) return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}

}  // namespace fastpower
