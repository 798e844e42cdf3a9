// Eight floats. The same names are defined by every simd_*.inl; see block_statistics.inl for their use.

#define FASTPOWER_INLINE FASTPOWER_TARGET static inline __attribute__((always_inline))

using Vec = __m256;
using Mask = __m256;
constexpr int kWidth = 8;

FASTPOWER_INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
FASTPOWER_INLINE Vec load(const bfloat16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
FASTPOWER_INLINE Vec load(const float16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
FASTPOWER_INLINE void store(float* p, Vec a) { _mm256_storeu_ps(p, a); }
FASTPOWER_INLINE Vec set(float x) { return _mm256_set1_ps(x); }
FASTPOWER_INLINE Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
FASTPOWER_INLINE Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
FASTPOWER_INLINE Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
FASTPOWER_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
FASTPOWER_INLINE Vec fnma(Vec a, Vec b, Vec c) { return _mm256_fnmadd_ps(a, b, c); }
// max(x, acc); a NaN in x leaves acc.
FASTPOWER_INLINE Vec max_or_keep(Vec x, Vec acc) { return _mm256_max_ps(x, acc); }
// y >= kLowest, true for NaN.
FASTPOWER_INLINE Mask counts(Vec y) { return _mm256_cmp_ps(y, set(kLowest), _CMP_NLT_UQ); }
// 2^n p where live, else 0; shifted = n + kRound holds n in its low bits, which are added to the exponent of
// p.
FASTPOWER_INLINE Vec scale(Vec p, Vec n, Vec shifted, Mask live) {
  (void)n;
  const __m256i power = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
  return _mm256_and_ps(live, _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), power)));
}
// a b + c where live, else c. b is finite or NaN where a is masked, so masking a is enough.
FASTPOWER_INLINE Vec fma_where(Mask live, Vec a, Vec b, Vec c) {
  return _mm256_fmadd_ps(_mm256_and_ps(live, a), b, c);
}

#undef FASTPOWER_INLINE
