// Words and digits on AVX-512 with VNNI. Digits, for up to four rows: weights leave their planes in
// registers, 64 bytes at a time, and meet the high and the low digits of each row; per block of 32 × 32
// weights at one row 32 products, 24 (4 bits) to 56 (5 bits) instructions of unpacking and some 20 for scales
// and sums.
#if defined(__x86_64__)
#include <immintrin.h>

// Intrinsics that leave undefined what they overwrite (gcc bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include <cstring>

#include "cpu/linear/quantised_kernels.h"

namespace fastpower {
namespace {

constexpr int64_t kFetched = 4096;
#define FASTPOWER_TARGET FASTPOWER_AVX512_VNNI
#define FASTPOWER_F16C
#define FASTPOWER_DOT(sum, w, x) dot_words(sum, w, x)
#define FASTPOWER_INLINE FASTPOWER_TARGET static inline __attribute__((always_inline))

// As assembler, because around the intrinsics gcc copies every accumulator twice per instruction.
FASTPOWER_INLINE __m512i dot_words(__m512i sum, __m512i w, __m512i x) {
  __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
  return sum;
}

FASTPOWER_INLINE __m512i dot_bytes(__m512i sum, __m512i w, __m512i x) {  // unsigned w
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
  return sum;
}

#include "cpu/linear/quantised_avx512.inl"
#include "cpu/linear/quantised_unpack.inl"

// a of both groups and b of 16 columns.
template <Format F>
FASTPOWER_INLINE void scales(const char* chunk, const char* after, int h, __m512* a, __m512* b) {
  const char* halves = (is_super(F) ? chunk : after) + 32 * h;
  a[0] = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
  if constexpr (has_min(F))
    *b = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves + 64)));
  if constexpr (is_super(F)) {
    const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i*>(after + 16 * h));
    const __m128i second = _mm_loadu_si128(reinterpret_cast<const __m128i*>(after + 32 + 16 * h));
    if constexpr (F == Format::q6_k) {
      a[1] = _mm512_mul_ps(a[0], _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(second)));
      a[0] = _mm512_mul_ps(a[0], _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(first)));
    } else {
      a[0] = _mm512_mul_ps(a[0], _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(first)));
      *b = _mm512_mul_ps(*b, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(second)));
    }
  } else if constexpr (has_min(F)) {
    *b = _mm512_xor_ps(*b, _mm512_set1_ps(-0.0f));
  }
}

template <Format F, int R>
FASTPOWER_TARGET void digit_rows(int64_t in, const char* panel, const char* next, const char* rows,
                                 int64_t stride, float* acc) {
  constexpr int kGroupQuads = group_of(F) / 4;
  const int64_t chunks = in / file_block(F), bytes = quantised_panel_bytes(F, in);
  __m512 total[R][2];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) total[r][0] = total[r][1] = _mm512_setzero_ps();
  const char* chunk = panel;
  for (int64_t i = 0; i < chunks; ++i, chunk += chunk_bytes(F))
    for (int64_t part = 0; part < blocks_of_chunk(F); ++part, rows += sizeof(RowBlock)) {
      const char* planes = chunk + header_bytes(F) + part * block_bytes(F);
      const int64_t ahead = planes - panel + kFetched;
      const char* line = ahead < bytes ? panel + ahead : next + (ahead - bytes);
      for (int64_t at = 0; at < block_bytes(F); at += 64) __builtin_prefetch(line + at, 0, 2);
      __m512 a[2][2], b[2];
      scales<F>(chunk, planes + quant_bytes(F), 0, a[0], b);
      scales<F>(chunk, planes + quant_bytes(F), 1, a[1], b + 1);
#pragma GCC unroll 2
      for (int g = 0; g < 8 / kGroupQuads; ++g) {
        __m512i high[R][2], low[R][2];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          const RowBlock& x = *reinterpret_cast<const RowBlock*>(rows + r * stride);
          high[r][0] = high[r][1] = _mm512_setzero_si512();
          low[r][0] = low[r][1] = first_sum<F>(x.minus[kGroupQuads == 8 ? 0 : 1 + g]);
        }
#pragma GCC unroll 8
        for (int q = g * kGroupQuads; q < (g + 1) * kGroupQuads; ++q) {
          const __m512i w0 = unpack<F>(planes, q, 0), w1 = unpack<F>(planes, q, 1);
#pragma GCC unroll 4
          for (int r = 0; r < R; ++r) {
            int32_t digits[2];
            std::memcpy(digits, rows + r * stride + 8 * q, 8);
            const __m512i x1 = _mm512_set1_epi32(digits[0]), x0 = _mm512_set1_epi32(digits[1]);
            high[r][0] = dot_bytes(high[r][0], w0, x1);
            high[r][1] = dot_bytes(high[r][1], w1, x1);
            low[r][0] = dot_bytes(low[r][0], w0, x0);
            low[r][1] = dot_bytes(low[r][1], w1, x0);
          }
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          const RowBlock& x = *reinterpret_cast<const RowBlock*>(rows + r * stride);
          const __m512 scale = _mm512_set1_ps(x.scale);
#pragma GCC unroll 2
          for (int h = 0; h < 2; ++h) {
            const __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(high[r][h], 8), low[r][h]);
            const __m512 t = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale);
            total[r][h] = _mm512_fmadd_ps(t, a[h][g], total[r][h]);
            if constexpr (has_min(F))
              total[r][h] = _mm512_fnmadd_ps(b[h], _mm512_set1_ps(x.sum), total[r][h]);
          }
        }
      }
    }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    _mm512_store_ps(acc + r * kColumns, total[r][0]);
    _mm512_store_ps(acc + r * kColumns + 16, total[r][1]);
  }
}

template <Format F>
void pass_digits(int64_t in, const char* panel, const char* next, const char* rows, int64_t stride,
                 int64_t count, float* acc) {
  static_assert(kDigitRows == 4, "one kernel for each number of rows");
  static constexpr decltype(&digit_rows<F, 1>) kRows[] = {digit_rows<F, 1>, digit_rows<F, 2>,
                                                          digit_rows<F, 3>, digit_rows<F, 4>};
  kRows[count - 1](in, panel, next, rows, stride, acc);
}

}  // namespace

void quantised_vnni(Format format, int64_t in, const char* panel, const char* next, bool digits,
                    const char* rows, int64_t stride, int64_t count, float* acc) {
#define FASTPOWER_CALL(F)                                            \
  digits ? pass_digits<F>(in, panel, next, rows, stride, count, acc) \
         : pass_words<F>(in, panel, next, rows, stride, count, acc)
  FASTPOWER_EACH_FORMAT(FASTPOWER_CALL)
#undef FASTPOWER_CALL
}

}  // namespace fastpower
#endif
