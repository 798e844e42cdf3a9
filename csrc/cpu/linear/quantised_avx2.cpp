#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "cpu/linear/quantised_kernels.h"

namespace fastpower {
namespace {

constexpr int64_t kFetched = 4096;
#define FASTPOWER_TARGET FASTPOWER_AVX2
#define FASTPOWER_F16C

// R rows × 4 vectors of 8 columns.
template <Format F, int R>
FASTPOWER_AVX2 void multiply_rows(const UnpackedBlock& block, const char* rows, int64_t stride, float* acc) {
  constexpr int kSteps = group_of(F) / 2;
  for (int g = 0; g < 16 / kSteps; ++g) {
    __m256i sum[R][4];
#pragma GCC unroll 3
    for (int r = 0; r < R; ++r) {
      const RowBlock& x = *reinterpret_cast<const RowBlock*>(rows + r * stride);
      const int32_t begin = offset_of(F) * x.minus[kSteps == 16 ? 0 : 1 + g];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) sum[r][j] = _mm256_set1_epi32(begin);
    }
    for (int s = g * kSteps; s < (g + 1) * kSteps; ++s) {
      __m256i x[R];
#pragma GCC unroll 3
      for (int r = 0; r < R; ++r) {
        int32_t pair;
        std::memcpy(&pair, rows + r * stride + 4 * s, 4);
        x[r] = _mm256_set1_epi32(pair);
      }
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const __m256i w = _mm256_load_si256(reinterpret_cast<const __m256i*>(block.words + s * 64 + j * 16));
#pragma GCC unroll 3
        for (int r = 0; r < R; ++r) sum[r][j] = _mm256_add_epi32(sum[r][j], _mm256_madd_epi16(w, x[r]));
      }
    }
#pragma GCC unroll 3
    for (int r = 0; r < R; ++r) {
      const RowBlock& x = *reinterpret_cast<const RowBlock*>(rows + r * stride);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        float* at = acc + r * kColumns + 8 * j;
        const __m256 t = _mm256_mul_ps(_mm256_cvtepi32_ps(sum[r][j]), _mm256_set1_ps(x.scale));
        __m256 total = _mm256_fmadd_ps(t, _mm256_load_ps(block.a[g] + 8 * j), _mm256_load_ps(at));
        if constexpr (has_min(F))
          total = _mm256_fnmadd_ps(_mm256_load_ps(block.b + 8 * j), _mm256_set1_ps(x.sum), total);
        _mm256_store_ps(at, total);
      }
    }
  }
}

template <Format F>
FASTPOWER_AVX2 void multiply(const UnpackedBlock& block, const char* rows, int64_t stride, int64_t count,
                             float* acc) {
  int64_t r = 0;
  for (; r + 2 <= count; r += 2) multiply_rows<F, 2>(block, rows + r * stride, stride, acc + r * kColumns);
  if (r < count) multiply_rows<F, 1>(block, rows + r * stride, stride, acc + r * kColumns);
}

#include "cpu/linear/quantised_unpack.inl"

}  // namespace

void quantised_avx2(Format format, int64_t in, const char* panel, const char* next, bool, const char* rows,
                    int64_t stride, int64_t count, float* acc) {
#define FASTPOWER_CALL(F) pass_words<F>(in, panel, next, rows, stride, count, acc)
  FASTPOWER_EACH_FORMAT(FASTPOWER_CALL)
#undef FASTPOWER_CALL
}

}  // namespace fastpower
#endif
