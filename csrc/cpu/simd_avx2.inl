// Eight floats. The same names are defined by every simd_*.inl; see block_statistics.inl for their use.

#define FASTPOWER_INLINE FASTPOWER_TARGET FASTPOWER_ALWAYS_INLINE

using Vec = __m256;
using Mask = __m256;
constexpr int kWidth = 8;
constexpr int kSteps = 1;

FASTPOWER_INLINE Vec widen(__m128i bits, bfloat16) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
FASTPOWER_INLINE Vec widen(__m128i bits, float16) { return _mm256_cvtph_ps(bits); }

FASTPOWER_INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
template <class T>
FASTPOWER_INLINE Vec load(const T* p) {
  return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), T());
}
// The first min(n, kWidth) entries, -inf after them; reads nothing beyond.
template <class T>
FASTPOWER_INLINE Vec load_some(const T* p, int n) {
  if (n >= kWidth) return load(p);
  alignas(32) float some[kWidth];
  _mm256_store_ps(some, _mm256_set1_ps(-kInf));
  for (int i = 0; i < n; ++i) some[i] = to_float(p[i]);
  return _mm256_load_ps(some);
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
FASTPOWER_INLINE bool all_below(Vec a, Vec b) {
  return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_NLT_UQ)) == 0;
}
FASTPOWER_INLINE bool any_above(Vec a, Vec b) {
  return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0;
}
// a b + c where live, else c. b is finite or NaN where a is masked, so masking a is enough.
FASTPOWER_INLINE Vec fma_where(Mask live, Vec a, Vec b, Vec c) {
  return _mm256_fmadd_ps(_mm256_and_ps(live, a), b, c);
}
FASTPOWER_INLINE float max_lanes(Vec a) {
  __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  b = _mm_max_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_max_ss(b, _mm_shuffle_ps(b, b, 1)));
}
FASTPOWER_INLINE double sum_lanes(Vec a) {
  const __m256d four =
      _mm256_add_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(a)), _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1)));
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

#undef FASTPOWER_INLINE
