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
#define FASTPOWER_TARGET FASTPOWER_AVX512
#define FASTPOWER_F16C
#define FASTPOWER_INLINE FASTPOWER_TARGET static inline __attribute__((always_inline))
#define FASTPOWER_DOT(sum, w, x) _mm512_add_epi32(sum, _mm512_madd_epi16(w, x))

#include "cpu/linear/quantised_avx512.inl"
#include "cpu/linear/quantised_unpack.inl"

}  // namespace

void quantised_avx512(Format format, int64_t in, const char* panel, const char* next, bool, const char* rows,
                      int64_t stride, int64_t count, float* acc) {
#define FASTPOWER_CALL(F) pass_words<F>(in, panel, next, rows, stride, count, acc)
  FASTPOWER_EACH_FORMAT(FASTPOWER_CALL)
#undef FASTPOWER_CALL
}

}  // namespace fastpower
#endif
