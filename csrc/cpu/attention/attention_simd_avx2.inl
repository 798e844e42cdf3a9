// Eight floats, AVX2 + FMA + F16C. See attention_steps.inl for the terms.

struct Simd {
  using F = __m256;
  static constexpr int kWidth = 8;
  static constexpr int kRows = 3;

  static F zero() { return _mm256_setzero_ps(); }
  static F set(float x) { return _mm256_set1_ps(x); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static F load(const bfloat16* p) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
  }
  static F load(const float16* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  // n is always kWidth here: head_dim is a multiple of it.
  template <class T>
  static F load(const T* p, int) {
    return load(p);
  }
  static void store(float* p, F x, int) { _mm256_storeu_ps(p, x); }
  static void store(bfloat16* p, F x, int) {
    alignas(32) float lanes[8];
    _mm256_store_ps(lanes, x);
    for (int i = 0; i < 8; ++i) from_float(lanes[i], p + i);
  }
  static void store(float16* p, F x, int) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  template <class T>
  static void load_pair(const T* p, F* a, F* b) {
    *a = load(p);
    *b = load(p + kWidth);
  }
  template <class T>
  static void to_pair_order(T, F*, F*) {}
  template <class T>
  static void from_pair_order(T, F*, F*) {}
  // 16 bfloat16: the even ones, then the odd ones. A shift and a mask are cheaper than two widening moves.
  static void load_pair(const bfloat16* p, F* a, F* b) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    *a = _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
    *b = _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  static void to_pair_order(bfloat16, F* a, F* b) {
    const F x = _mm256_permute2f128_ps(*a, *b, 0x20), y = _mm256_permute2f128_ps(*a, *b, 0x31);
    *a = _mm256_shuffle_ps(x, y, 0x88);  // the halves hold 0–3 and 8–11, 4–7 and 12–15: in order already
    *b = _mm256_shuffle_ps(x, y, 0xdd);
  }
  static void from_pair_order(bfloat16, F* a, F* b) {
    const F x = _mm256_unpacklo_ps(*a, *b), y = _mm256_unpackhi_ps(*a, *b);
    *a = _mm256_permute2f128_ps(x, y, 0x20);
    *b = _mm256_permute2f128_ps(x, y, 0x31);
  }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F less_select(F a, F b, F yes, F no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
  }
  static F abs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static float reduce_add(F x) {
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_shuffle_ps(y, y, 1)));
  }
  static float reduce_max(F x) {
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_shuffle_ps(y, y, 1)));
  }
  static F split_exponent(F x, F* p2) {
    x = _mm256_max_ps(_mm256_set1_ps(-150.0f), x);  // the second operand if one is NaN
    const __m256 n = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    *p2 = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_max_epi32(e, _mm256_setzero_si256()), 23));
    return _mm256_sub_ps(x, n);
  }
  static void transpose(const F* r, float* out, int stride, int) {
    F t[8], u[8];
    for (int i = 0; i < 4; ++i) {
      t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
      t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 2; ++i) {
      u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
      u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
      u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
      u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
      _mm256_storeu_ps(out + i * stride, _mm256_permute2f128_ps(u[i], u[i + 4], 0x20));
      _mm256_storeu_ps(out + (i + 4) * stride, _mm256_permute2f128_ps(u[i], u[i + 4], 0x31));
    }
  }
  template <class T>
  static constexpr int block() {
    return kWidth;
  }
  template <class T>
  static void transpose(const T* base, int64_t stride, float* out, int out_stride) {
    F block[kWidth];
    for (int k = 0; k < kWidth; ++k) block[k] = load(base + k * stride);
    transpose(block, out, out_stride, kWidth);
  }
};
