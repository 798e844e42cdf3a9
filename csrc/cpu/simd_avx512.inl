// Sixteen floats. The same names are defined by every simd_*.inl; see block_statistics.inl for their use.

#define FASTPOWER_INLINE FASTPOWER_TARGET FASTPOWER_ALWAYS_INLINE

using Vec = __m512;
using Mask = __mmask16;
constexpr int kWidth = 16;
constexpr int kSteps = 32;
#define FASTPOWER_EXP_TABLE
alignas(64) constexpr float kPowers[kSteps] = {
    1.0f,        1.0218972f,  1.04427373f, 1.06714046f, 1.09050775f, 1.1143868f,  1.13878858f,
    1.1637249f,  1.18920708f, 1.21524739f, 1.24185777f, 1.26905096f, 1.29683959f, 1.32523668f,
    1.35425556f, 1.38390994f, 1.41421354f, 1.44518077f, 1.47682619f, 1.50916445f, 1.54221082f,
    1.5759809f,  1.61049032f, 1.64575553f, 1.68179286f, 1.71861935f, 1.75625217f, 1.79470909f,
    1.8340081f,  1.87416768f, 1.91520655f, 1.95714414f};  // 2^{k/32}

FASTPOWER_INLINE Vec widen(__m256i bits, bfloat16) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
FASTPOWER_INLINE Vec widen(__m256i bits, float16) { return _mm512_cvtph_ps(bits); }

FASTPOWER_INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
template <class T>
FASTPOWER_INLINE Vec load(const T* p) {
  return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), T());
}
// The first min(n, kWidth) entries, -inf after them; reads nothing beyond.
FASTPOWER_INLINE Vec load_some(const float* p, int n) {
  return _mm512_mask_loadu_ps(_mm512_set1_ps(-kInf), n < kWidth ? (1u << n) - 1 : 0xFFFFu, p);
}
template <class T>
FASTPOWER_INLINE Vec load_some(const T* p, int n) {
  const Mask here = n < kWidth ? (1u << n) - 1 : 0xFFFFu;
  return _mm512_mask_mov_ps(_mm512_set1_ps(-kInf), here, widen(_mm256_maskz_loadu_epi16(here, p), T()));
}
FASTPOWER_INLINE void store(float* p, Vec a) { _mm512_storeu_ps(p, a); }
FASTPOWER_INLINE Vec set(float x) { return _mm512_set1_ps(x); }
FASTPOWER_INLINE Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
FASTPOWER_INLINE Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
FASTPOWER_INLINE Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
FASTPOWER_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
FASTPOWER_INLINE Vec fnma(Vec a, Vec b, Vec c) { return _mm512_fnmadd_ps(a, b, c); }
// max(x, acc); a NaN in x leaves acc.
FASTPOWER_INLINE Vec max_or_keep(Vec x, Vec acc) { return _mm512_max_ps(x, acc); }
// y >= kLowest, true for NaN.
FASTPOWER_INLINE Mask counts(Vec y) { return _mm512_cmp_ps_mask(y, set(kLowest), _CMP_NLT_UQ); }
// 2^floor(n) p where live, else 0.
FASTPOWER_INLINE Vec scale(Vec p, Vec n, Vec shifted, Mask live) {
  (void)shifted;
  return _mm512_maskz_scalef_ps(live, p, n);
}
// 2^floor(n) p.
FASTPOWER_INLINE Vec scale(Vec p, Vec n) { return _mm512_scalef_ps(p, n); }
// 2^{k/32} for the low five bits k of a float.
FASTPOWER_INLINE Vec lookup(Vec shifted) {
  return _mm512_permutex2var_ps(_mm512_load_ps(kPowers), _mm512_castps_si512(shifted),
                                _mm512_load_ps(kPowers + 16));
}
FASTPOWER_INLINE bool all_below(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ) == 0; }
FASTPOWER_INLINE bool any_above(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0; }
// a b + c where live, else c.
FASTPOWER_INLINE Vec fma_where(Mask live, Vec a, Vec b, Vec c) {
  return _mm512_mask3_fmadd_ps(a, b, c, live);
}
FASTPOWER_INLINE float max_lanes(Vec a) { return _mm512_reduce_max_ps(a); }
FASTPOWER_INLINE double sum_lanes(Vec a) {
  return _mm512_reduce_add_pd(_mm512_add_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(a)),
                                            _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1))));
}

#undef FASTPOWER_INLINE
