// Element types of the tensors that kernels read and write. Sums are always float32.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

namespace fastpower {

enum class Dtype { float32, bfloat16, float16 };

inline int64_t size_of(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 2; }

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

// The name that torch uses, without "torch.".
inline Dtype dtype_from_name(const std::string& name) {
  if (name == "float32") return Dtype::float32;
  if (name == "bfloat16") return Dtype::bfloat16;
  if (name == "float16") return Dtype::float16;
  throw std::invalid_argument("dtype must be float32, bfloat16 or float16, got '" + name + "'");
}

inline float to_float(float x) { return x; }

inline float to_float(bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

inline float to_float(float16 x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu;
  uint32_t bits;
  if (magnitude >= 0x7c00u) {
    bits = sign | 0x7f800000u | (magnitude & 0x3ffu) << 13;
  } else {
    bits = magnitude << 13;  // the exponent is 112 too small; multiplying repairs it, for subnormals too
    float f, rebias;
    const uint32_t rebias_bits = (254u - 15u) << 23;  // 2^112
    std::memcpy(&f, &bits, 4);
    std::memcpy(&rebias, &rebias_bits, 4);
    f *= rebias;
    std::memcpy(&bits, &f, 4);
    bits |= sign;
  }
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

// Round to nearest, ties to even; NaN stays NaN.
inline void from_float(float x, float* out) { *out = x; }

inline void from_float(float x, bfloat16* out) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) {
    out->bits = static_cast<uint16_t>(bits >> 16 | 0x40u);
    return;
  }
  out->bits = static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

inline void from_float(float x, float16* out) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) {
    out->bits = sign | 0x7e00u;
  } else if (bits >= 0x477ff000u) {  // rounds to 2^16 or more
    out->bits = sign | 0x7c00u;
  } else if (bits <
             0x38800000u) {  // subnormal: adding 2^-1 puts the units of 2^-24 into the last bits, rounded
    float f;
    std::memcpy(&f, &bits, 4);
    f += 0.5f;
    uint32_t sum;
    std::memcpy(&sum, &f, 4);
    out->bits = sign | static_cast<uint16_t>(sum - 0x3f000000u);
  } else {
    bits += 0xc8000000u + 0xfffu + (bits >> 13 & 1u);  // exponent - 112, round
    out->bits = sign | static_cast<uint16_t>(bits >> 13);
  }
}

}  // namespace fastpower
