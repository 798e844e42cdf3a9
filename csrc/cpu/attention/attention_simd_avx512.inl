// Sixteen floats, AVX-512 F/BW/DQ/VL. See attention_steps.inl for the terms.

struct Simd {
  using F = __m512;
  static constexpr int kWidth = 16;
  static constexpr int kRows = 6;

  static __mmask16 first(int n) { return static_cast<__mmask16>(n >= 16 ? 0xffffu : (1u << n) - 1u); }

  static F zero() { return _mm512_setzero_ps(); }
  static F set(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static F load(const bfloat16* p) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
  }
  static F load(const float16* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F load(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static F load(const bfloat16* p, int n) {
    const __m256i x = _mm256_maskz_loadu_epi16(first(n), p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
  }
  static F load(const float16* p, int n) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p)); }
  static void store(float* p, F x, int n) { _mm512_mask_storeu_ps(p, first(n), x); }
  static void store(bfloat16* p, F x, int n) {
    const __m512i bits = _mm512_castps_si512(x), one = _mm512_set1_epi32(1);
    const __m512i even = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
    __m512i y = _mm512_add_epi32(bits, _mm512_add_epi32(even, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    y = _mm512_srli_epi32(_mm512_mask_or_epi32(y, nan, bits, _mm512_set1_epi32(0x400000)), 16);
    _mm256_mask_storeu_epi16(p, first(n), _mm512_cvtepi32_epi16(y));
  }
  static void store(float16* p, F x, int n) {
    _mm256_mask_storeu_epi16(p, first(n), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
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
  // 32 bfloat16: the even ones, then the odd ones. A shift and a mask are cheaper than two widening moves.
  static void load_pair(const bfloat16* p, F* a, F* b) {
    const __m512i x = _mm512_loadu_si512(p);
    *a = _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
    *b = _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  static void to_pair_order(bfloat16, F* a, F* b) {
    const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const F x = *a, y = *b;
    *a = _mm512_permutex2var_ps(x, even, y);
    *b = _mm512_permutex2var_ps(x, _mm512_add_epi32(even, _mm512_set1_epi32(1)), y);
  }
  static void from_pair_order(bfloat16, F* a, F* b) {
    const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const F x = *a, y = *b;
    *a = _mm512_permutex2var_ps(x, low, y);
    *b = _mm512_permutex2var_ps(x, _mm512_add_epi32(low, _mm512_set1_epi32(8)), y);
  }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F less_select(F a, F b, F yes, F no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
  }
  static F abs(F a) { return _mm512_abs_ps(a); }
  static float reduce_add(F x) {
    x = _mm512_add_ps(x, _mm512_shuffle_f32x4(x, x, 0x4e));
    x = _mm512_add_ps(x, _mm512_shuffle_f32x4(x, x, 0xb1));
    __m128 y = _mm512_castps512_ps128(x);
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_shuffle_ps(y, y, 1)));
  }
  static float reduce_max(F x) {
    x = _mm512_max_ps(x, _mm512_shuffle_f32x4(x, x, 0x4e));
    x = _mm512_max_ps(x, _mm512_shuffle_f32x4(x, x, 0xb1));
    __m128 y = _mm512_castps512_ps128(x);
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_shuffle_ps(y, y, 1)));
  }
  static F split_exponent(F x, F* p2) {
    x = _mm512_max_ps(_mm512_set1_ps(-150.0f), x);  // the second operand if one is NaN
    const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __mmask16 normal = _mm512_cmp_ps_mask(n, _mm512_set1_ps(-126.0f), _CMP_GE_OQ);
    *p2 = _mm512_maskz_scalef_ps(normal, _mm512_set1_ps(1.0f), n);
    return _mm512_sub_ps(x, n);
  }
  static void transpose(const F* r, float* out, int stride, int n) {
    F t[16], u[16];
    for (int i = 0; i < 8; ++i) {
      t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
      t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 4; ++i) {
      u[4 * i] = _mm512_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
      u[4 * i + 1] = _mm512_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
      u[4 * i + 2] = _mm512_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
      u[4 * i + 3] = _mm512_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
      t[i] = _mm512_shuffle_f32x4(u[i], u[i + 4], 0x88);
      t[i + 4] = _mm512_shuffle_f32x4(u[i], u[i + 4], 0xdd);
      t[i + 8] = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0x88);
      t[i + 12] = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; ++i) {
      const int d = i;  // t[i]: word i and word i + 8 of keys 0-7, t[i + 8]: of keys 8-15
      _mm512_storeu_ps(out + d * stride, _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88));
      if (d + 8 < n) _mm512_storeu_ps(out + (d + 8) * stride, _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd));
    }
  }
  // Words per key that are transposed at once: 16 of 32 bits, so 32 bfloat16.
  template <class T>
  static constexpr int block() {
    return sizeof(T) == 2 && !is_half(T{}) ? 32 : 16;
  }
  static constexpr bool is_half(float16) { return true; }
  template <class T>
  static constexpr bool is_half(T) {
    return false;
  }
  // The 128-bit quarters of 16 keys are put in place by loads with a mask, which leaves half of the shuffles.
  static void quarter(const char* base, int64_t stride, F* t) {
    F u[4];
    for (int i = 0; i < 4; ++i) {
      const char* row = base + i * stride;
      F x = _mm512_castps128_ps512(_mm_loadu_ps(reinterpret_cast<const float*>(row)));
      x = _mm512_mask_broadcast_f32x4(x, 0x00f0,
                                      _mm_loadu_ps(reinterpret_cast<const float*>(row + 4 * stride)));
      x = _mm512_mask_broadcast_f32x4(x, 0x0f00,
                                      _mm_loadu_ps(reinterpret_cast<const float*>(row + 8 * stride)));
      u[i] = _mm512_mask_broadcast_f32x4(x, 0xf000,
                                         _mm_loadu_ps(reinterpret_cast<const float*>(row + 12 * stride)));
    }
    const F a = _mm512_unpacklo_ps(u[0], u[1]), b = _mm512_unpackhi_ps(u[0], u[1]);
    const F c = _mm512_unpacklo_ps(u[2], u[3]), d = _mm512_unpackhi_ps(u[2], u[3]);
    t[0] = _mm512_shuffle_ps(a, c, 0x44);
    t[1] = _mm512_shuffle_ps(a, c, 0xee);
    t[2] = _mm512_shuffle_ps(b, d, 0x44);
    t[3] = _mm512_shuffle_ps(b, d, 0xee);
  }
  static void transpose(const float* base, int64_t stride, float* out, int out_stride) {
    for (int q = 0; q < 16; q += 4) {
      F t[4];
      quarter(reinterpret_cast<const char*>(base + q), 4 * stride, t);
      for (int i = 0; i < 4; ++i) _mm512_storeu_ps(out + (q + i) * out_stride, t[i]);
    }
  }
  static void transpose(const bfloat16* base, int64_t stride, float* out, int out_stride) {
    for (int q = 0; q < 16; q += 4) {
      F t[4];
      quarter(reinterpret_cast<const char*>(base + 2 * q), 2 * stride, t);
      for (int i = 0; i < 4; ++i) {
        const __m512i pair = _mm512_castps_si512(t[i]);
        const __m512i even = _mm512_slli_epi32(pair, 16);
        const __m512i odd = _mm512_and_si512(pair, _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
        _mm512_storeu_ps(out + 2 * (q + i) * out_stride, _mm512_castsi512_ps(even));
        _mm512_storeu_ps(out + (2 * (q + i) + 1) * out_stride, _mm512_castsi512_ps(odd));
      }
    }
  }
  static void transpose(const float16* base, int64_t stride, float* out, int out_stride) {
    F block[kWidth];
    for (int k = 0; k < kWidth; ++k) block[k] = load(base + k * stride);
    transpose(block, out, out_stride, kWidth);
  }
};
