#include "cpu/linear/quantised_rows.h"

#include <cmath>
#include <cstring>

namespace fastpower {
namespace {

#define FASTPOWER_BODY static inline __attribute__((always_inline))

// 127 · 256 + 127: a larger one would need a high digit of 128.
constexpr float kLargest = 32639.0f;

// Adding it rounds |x| < 2²² to an integer, ties to even, which then sits in the low bits.
constexpr float kMagic = 12582912.0f;

// Blocks whose largest magnitude is smaller are zero: 1 / scale would not be finite.
constexpr float kSmallest = 7.888609e-31f;  // 2^-100

FASTPOWER_BODY void write_body(bool digits, const float* x, int64_t n, RowBlock* out) {
  for (int64_t b = 0; b < n / kQuantBlock; ++b, x += kQuantBlock, ++out) {
    uint32_t largest = 0;
    uint32_t bits[kQuantBlock];
    std::memcpy(bits, x, sizeof(bits));
    for (int j = 0; j < kQuantBlock; ++j) {
      const uint32_t magnitude = bits[j] & 0x7fffffffu;
      largest = magnitude > largest ? magnitude : largest;
    }
    int32_t q[kQuantBlock];
    if (largest >= 0x7f800000u) {
      for (int j = 0; j < kQuantBlock; ++j) q[j] = 0;
      out->scale = std::nanf("");
    } else {
      float magnitude;
      std::memcpy(&magnitude, &largest, 4);
      const bool some = magnitude >= kSmallest;
      const float up = some ? kLargest / magnitude : 0.0f;
      out->scale = some ? magnitude / kLargest : 0.0f;
      for (int j = 0; j < kQuantBlock; ++j) {
        const float shifted = x[j] * up + kMagic;
        int32_t rounded;
        std::memcpy(&rounded, &shifted, 4);
        q[j] = rounded - 0x4b400000;
      }
    }
    int32_t sums[2] = {0, 0};
    for (int j = 0; j < 16; ++j) {
      sums[0] += q[j];
      sums[1] += q[j + 16];
    }
    out->minus[0] = -(sums[0] + sums[1]);
    out->minus[1] = -sums[0];
    out->minus[2] = -sums[1];
    out->sum = out->scale * static_cast<float>(sums[0] + sums[1]);
    if (digits) {
      int8_t* d = reinterpret_cast<int8_t*>(out->x);
      for (int i = 0; i < kQuantBlock / 4; ++i)
        for (int j = 0; j < 4; ++j) {
          const int32_t value = q[4 * i + j], low = static_cast<int8_t>(value);
          d[8 * i + j] = static_cast<int8_t>((value - low) / 256);
          d[8 * i + 4 + j] = static_cast<int8_t>(low);
        }
    } else {
      for (int i = 0; i < kQuantBlock; i += 4) {
        out->x[i] = static_cast<int16_t>(q[i]);
        out->x[i + 1] = static_cast<int16_t>(q[i + 2]);
        out->x[i + 2] = static_cast<int16_t>(q[i + 1]);
        out->x[i + 3] = static_cast<int16_t>(q[i + 3]);
      }
    }
  }
}

void portable(bool digits, const float* x, int64_t n, RowBlock* out) { write_body(digits, x, n, out); }
#if defined(__x86_64__)
FASTPOWER_AVX2 void avx2(bool digits, const float* x, int64_t n, RowBlock* out) {
  write_body(digits, x, n, out);
}
FASTPOWER_AVX512 void avx512(bool digits, const float* x, int64_t n, RowBlock* out) {
  write_body(digits, x, n, out);
}
#endif

}  // namespace

void write_row_blocks(Isa isa, bool digits, const float* x, int64_t n, RowBlock* out) {
#if defined(__x86_64__)
  if (isa >= Isa::avx512) return avx512(digits, x, n, out);
  if (isa == Isa::avx2) return avx2(digits, x, n, out);
#endif
  (void)isa;
  portable(digits, x, n, out);
}

void read_row_blocks(bool digits, const RowBlock* blocks, int64_t n, float* out) {
  for (int64_t b = 0; b < n / kQuantBlock; ++b, ++blocks)
    for (int64_t j = 0; j < kQuantBlock; ++j, ++out) {
      int32_t value;
      if (digits) {
        const int8_t* d = reinterpret_cast<const int8_t*>(blocks->x) + j / 4 * 8 + j % 4;
        value = 256 * d[0] + d[4];
      } else {
        constexpr int kPlace[] = {0, 2, 1, 3};
        value = blocks->x[j / 4 * 4 + kPlace[j % 4]];
      }
      *out = blocks->scale * static_cast<float>(value);
    }
}

}  // namespace fastpower
