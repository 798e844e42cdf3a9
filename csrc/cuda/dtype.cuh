// Element types. 16-bit formats are their bits: the CUDA headers for them are not needed. All arithmetic is
// in float.
#pragma once

#include "launch.h"

namespace fastpower {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(BFloat16 x) { return __uint_as_float(uint32_t{x.bits} << 16); }
__device__ inline float to_float(Float16 x) { return half_bits_to_float(x.bits); }

// Rounded to nearest, ties to even.
__device__ inline void store(float x, float* target) { *target = x; }
__device__ inline void store(float x, Float16* target) { target->bits = float_to_half_bits(x); }
__device__ inline void store(float x, BFloat16* target) {
  const uint32_t bits = __float_as_uint(x);
  target->bits = static_cast<uint16_t>(x == x ? (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 : 0x7FC0);
}

// 16 bytes, loaded at once.
template <typename T>
struct alignas(16) Packet {
  static constexpr int kWidth = 16 / sizeof(T);
  T at[kWidth];
};

// Calls run(T()) with the type of a Dtype code.
template <typename Run>
cudaError_t with_dtype(int dtype, const Run& run) {
  switch (dtype) {
    case kFloat32:
      return run(float());
    case kBFloat16:
      return run(BFloat16());
    case kFloat16:
      return run(Float16());
  }
  return cudaErrorInvalidValue;
}

}  // namespace fastpower
