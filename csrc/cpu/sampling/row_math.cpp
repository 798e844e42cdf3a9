#include "cpu/sampling/row_math.h"

#include <cmath>
#include <cstring>

namespace fastpower {
namespace {

#define FASTPOWER_BODY static inline __attribute__((always_inline))

// Where e^x is cut off. Kept from the compiler: if it knew them, it would compute both outcomes of each
// comparison, and x / (1 + e^88) as a speculative lane is subnormal, which costs a hundred cycles a vector.
struct Range {
  float lowest = -87.0f, highest = 88.0f;
  Range() { __asm__("" : "+m"(lowest), "+m"(highest)); }
};

// e^x within 2e-7, x cut to the range; NaN for NaN. Plain arithmetic without branches: the compiler turns a
// loop over it into vector code for each instruction set.
FASTPOWER_BODY float exp_of(float x, float lowest, float highest) {
  x = x < lowest ? lowest : x;
  x = x > highest ? highest : x;
  const float magic = 12582912.0f;  // 1.5 · 2²³: adding it rounds to an integer, which sits in the low bits
  const float shifted = x * 1.44269504f + magic;
  const float n = shifted - magic;
  float r = x - n * 0.693145752f;  // log 2 in two parts, the first with trailing zeros
  r = r - n * 1.42860677e-6f;
  float p = 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, 4);
  bits = (bits + 127u) << 23;
  float scale;
  std::memcpy(&scale, &bits, 4);
  return p * scale;
}

FASTPOWER_BODY void rms_norm_body(const float* x, const float* weight, float eps, int64_t n, float* out) {
  float part[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int j = 0; j < 16; ++j) part[j] += x[i + j] * x[i + j];
  for (int j = 0; i + j < n; ++j) part[j] += x[i + j] * x[i + j];
  for (int width = 8; width; width /= 2)
    for (int j = 0; j < width; ++j) part[j] += part[j + width];
  const float scale = 1.0f / std::sqrt(part[0] / static_cast<float>(n) + eps);
  for (i = 0; i < n; ++i) out[i] = x[i] * scale * weight[i];
}

FASTPOWER_BODY void rotate_body(float* x, const float* cos, const float* sin, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[i], b = x[half + i];
    x[i] = a * cos[i] - b * sin[i];
    x[half + i] = b * cos[i] + a * sin[i];
  }
}

FASTPOWER_BODY void gate_body(const float* __restrict gate, const float* __restrict up, int64_t n,
                              Activation activation, float* __restrict out) {
  const Range range;
  const float lowest = range.lowest, highest = range.highest;
  if (activation == Activation::silu) {
    for (int64_t i = 0; i < n; ++i) out[i] = gate[i] / (1.0f + exp_of(-gate[i], lowest, highest)) * up[i];
  } else {  // x/2 (1 + tanh t) = x / (1 + e^(−2t))
    for (int64_t i = 0; i < n; ++i) {
      const float x = gate[i], t = 1.59576912f * (x + 0.044715f * x * x * x);
      out[i] = x / (1.0f + exp_of(-t, lowest, highest)) * up[i];
    }
  }
}

FASTPOWER_BODY void add_body(const float* __restrict x, int64_t n, float* __restrict sum) {
  for (int64_t i = 0; i < n; ++i) sum[i] += x[i];
}

FASTPOWER_BODY void narrow_body(const float* __restrict x, int64_t n, bfloat16* __restrict out) {
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, 4);
    const uint32_t nan = bits | 0x400000u, rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    out[i].bits = static_cast<uint16_t>(((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded) >> 16);
  }
}

FASTPOWER_BODY void widen_body(const bfloat16* __restrict x, int64_t n, float* __restrict out) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = static_cast<uint32_t>(x[i].bits) << 16;
    std::memcpy(out + i, &bits, 4);
  }
}

#define FASTPOWER_VARIANT(NAME, TARGET)                                                             \
  namespace NAME {                                                                                  \
  TARGET void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* out) {     \
    rms_norm_body(x, weight, eps, n, out);                                                          \
  }                                                                                                 \
  TARGET void rotate(float* x, const float* cos, const float* sin, int64_t half) {                  \
    rotate_body(x, cos, sin, half);                                                                 \
  }                                                                                                 \
  TARGET void gate(const float* g, const float* up, int64_t n, Activation activation, float* out) { \
    gate_body(g, up, n, activation, out);                                                           \
  }                                                                                                 \
  TARGET void add(const float* x, int64_t n, float* sum) { add_body(x, n, sum); }                   \
  TARGET void narrow(const float* x, int64_t n, bfloat16* out) { narrow_body(x, n, out); }          \
  TARGET void widen(const bfloat16* x, int64_t n, float* out) { widen_body(x, n, out); }            \
  constexpr RowMath kTable{rms_norm, rotate, gate, add, narrow, widen};                             \
  }

FASTPOWER_VARIANT(portable, )
#if defined(__x86_64__)
FASTPOWER_VARIANT(avx2, FASTPOWER_AVX2)
FASTPOWER_VARIANT(avx512, FASTPOWER_AVX512)
#endif

}  // namespace

const RowMath& row_math(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::avx512) return avx512::kTable;
  if (isa == Isa::avx2) return avx2::kTable;
#endif
  (void)isa;
  return portable::kTable;
}

}  // namespace fastpower
