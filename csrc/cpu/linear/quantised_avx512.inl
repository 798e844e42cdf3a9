// Words on AVX-512, with or without VNNI: R rows × 2 vectors of 16 columns, up to 24 accumulators.

// Bytes shifted by n bits, right or (n < 0) left; what crosses into a neighbour byte is masked off later.
FASTPOWER_INLINE __m512i shift(__m512i v, int n) {
  return n < 0 ? (__m512i)((__v32hu)v << -n) : (__m512i)((__v32hu)v >> n);
}

// Vector (i, h) of a block as unsigned bytes.
template <Format F>
FASTPOWER_INLINE __m512i unpack(const char* planes, int i, int h) {
  constexpr int kBits = bits_of(F);
  if constexpr (kBits == 8) return _mm512_loadu_si512(planes + (2 * i + h) * 64);
  const __m512i low = shift(_mm512_loadu_si512(planes + (i / 2 * 2 + h) * 64), i % 2 * 4);
  const __m512i nibble = _mm512_set1_epi8(15);
  if constexpr (kBits == 4) return _mm512_and_si512(low, nibble);
  const int plane = kBits == 6 ? i / 4 : 0, bit = kBits == 6 ? i % 4 * 2 : i;
  const __m512i high = shift(_mm512_loadu_si512(planes + 512 + (2 * plane + h) * 64), bit - 4);
  // nibble ? low : high
  const __m512i both = _mm512_ternarylogic_epi32(nibble, low, high, 0xca);
  return _mm512_and_si512(both, _mm512_set1_epi8(kBits == 6 ? 63 : 31));
}

// A block as pairs of words; what the loops of quantised_unpack.inl do, in half the instructions.
#define FASTPOWER_OWN_UNPACK
template <Format F>
FASTPOWER_INLINE void unpack_words(const uint8_t* planes, int16_t* words) {
  const __m512i low_bytes = _mm512_set1_epi16(255);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h, words += 32) {
      const __m512i q = unpack<F>(reinterpret_cast<const char*>(planes), i, h);
      _mm512_store_si512(words + 64 * i, _mm512_and_si512(q, low_bytes));
      _mm512_store_si512(words + 64 * i + 64, (__m512i)((__v32hu)q >> 8));
    }
}

// What sums begin with: minus the offset of the weights' integers for every input.
template <Format F>
FASTPOWER_TARGET static inline __m512i first_sum(int32_t minus) {
  constexpr int kOffset = offset_of(F);
  if constexpr (kOffset == 0) return _mm512_setzero_si512();
  return (__m512i)((__v16si)_mm512_set1_epi32(minus) << __builtin_ctz(kOffset));
}

template <Format F, int R>
FASTPOWER_TARGET void multiply_rows(const UnpackedBlock& block, const char* rows, int64_t stride,
                                    float* acc) {
  constexpr int kSteps = group_of(F) / 2;
  for (int g = 0; g < 16 / kSteps; ++g) {
    __m512i sum[R][2];
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const RowBlock& x = *reinterpret_cast<const RowBlock*>(rows + r * stride);
      sum[r][0] = sum[r][1] = first_sum<F>(x.minus[kSteps == 16 ? 0 : 1 + g]);
    }
    const int16_t* w = block.words + g * kSteps * 64;
    const char* at = rows + g * kSteps * 4;
#pragma GCC unroll 4
    for (int s = 0; s < kSteps; ++s, w += 64, at += 4) {
      const __m512i w0 = _mm512_load_si512(w), w1 = _mm512_load_si512(w + 32);
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        int32_t pair;
        std::memcpy(&pair, at + r * stride, 4);
        const __m512i x = _mm512_set1_epi32(pair);
        sum[r][0] = FASTPOWER_DOT(sum[r][0], w0, x);
        sum[r][1] = FASTPOWER_DOT(sum[r][1], w1, x);
      }
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const RowBlock& x = *reinterpret_cast<const RowBlock*>(rows + r * stride);
      const __m512 scale = _mm512_set1_ps(x.scale);
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        float* target = acc + r * kColumns + 16 * h;
        const __m512 t = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[r][h]), scale);
        __m512 total = _mm512_fmadd_ps(t, _mm512_load_ps(block.a[g] + 16 * h), _mm512_load_ps(target));
        if constexpr (has_min(F))
          total = _mm512_fnmadd_ps(_mm512_load_ps(block.b + 16 * h), _mm512_set1_ps(x.sum), total);
        _mm512_store_ps(target, total);
      }
    }
  }
}

template <Format F>
FASTPOWER_TARGET void multiply(const UnpackedBlock& block, const char* rows, int64_t stride, int64_t count,
                               float* acc) {
  using Rows = void (*)(const UnpackedBlock&, const char*, int64_t, float*);
  static constexpr Rows kRows[] = {multiply_rows<F, 1>,  multiply_rows<F, 2>,  multiply_rows<F, 3>,
                                   multiply_rows<F, 4>,  multiply_rows<F, 5>,  multiply_rows<F, 6>,
                                   multiply_rows<F, 7>,  multiply_rows<F, 8>,  multiply_rows<F, 9>,
                                   multiply_rows<F, 10>, multiply_rows<F, 11>, multiply_rows<F, 12>};
  const int64_t tiles = (count + 11) / 12;  // of equal height
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t begin = count * t / tiles, end = count * (t + 1) / tiles;
    kRows[end - begin - 1](block, rows + begin * stride, stride, acc + begin * kColumns);
  }
}
