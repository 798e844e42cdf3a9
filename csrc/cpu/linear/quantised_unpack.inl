// Unpacking one block of a panel to words and float32 scales, included by the kernels of an instruction set,
// which define FASTPOWER_TARGET. Loops over bytes that the compiler turns into its vectors.

#if !defined(FASTPOWER_OWN_UNPACK)
template <Format F>
FASTPOWER_TARGET static inline void unpack_words(const uint8_t* planes, int16_t* words) {
  constexpr int kBits = bits_of(F), kWidth = kBits - 4;
  for (int i = 0; i < 8; ++i) {
    const uint8_t* low = planes + (kBits == 8 ? i : i / 2) * 128;
    const uint8_t* high = planes + 512 + (kBits == 6 ? i / 4 * 128 : 0);
    const int low_shift = i % 2 * 4, high_shift = kBits == 6 ? i % 4 * 2 : i;
    uint8_t q[128];
    for (int l = 0; l < 128; ++l) {
      if constexpr (kBits == 8)
        q[l] = low[l];
      else
        q[l] = static_cast<uint8_t>(low[l] >> low_shift & 15);
      if constexpr (kBits == 5 || kBits == 6)
        q[l] = static_cast<uint8_t>(q[l] | (high[l] >> high_shift & ((1 << kWidth) - 1)) << 4);
    }
    int16_t* even = words + 2 * i * 64;
    for (int l = 0; l < 64; ++l) {
      uint16_t pair;
      std::memcpy(&pair, q + 2 * l, 2);
      even[l] = static_cast<int16_t>(pair & 255);
      even[l + 64] = static_cast<int16_t>(pair >> 8);
    }
  }
}
#endif

FASTPOWER_TARGET static inline void widen_halves(const uint8_t* halves, float* out) {
#if defined(FASTPOWER_F16C)
  for (int c = 0; c < 32; c += 8)
    _mm256_storeu_ps(out + c,
                     _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves + 2 * c))));
#else
  for (int c = 0; c < 32; ++c) {
    float16 half;
    std::memcpy(&half, halves + 2 * c, 2);
    out[c] = to_float(half);
  }
#endif
}

// The scales of block `part` of a chunk.
template <Format F>
FASTPOWER_TARGET static inline void unpack_scales(const uint8_t* chunk, int64_t part, float (*a)[kColumns],
                                                  float* b) {
  const uint8_t* after = chunk + header_bytes(F) + part * block_bytes(F) + quant_bytes(F);
  const uint8_t* halves = is_super(F) ? chunk : after;
  widen_halves(halves, a[0]);
  if constexpr (has_min(F)) widen_halves(halves + 64, b);
  if constexpr (F == Format::q6_k) {
    for (int c = 0; c < 32; ++c) {
      const float d = a[0][c];
      a[0][c] = d * static_cast<float>(static_cast<int8_t>(after[c]));
      a[1][c] = d * static_cast<float>(static_cast<int8_t>(after[32 + c]));
    }
  } else if constexpr (is_super(F)) {
    for (int c = 0; c < 32; ++c) {
      a[0][c] *= static_cast<float>(after[c]);
      b[c] *= static_cast<float>(after[32 + c]);
    }
  } else if constexpr (has_min(F)) {
    for (int c = 0; c < 32; ++c) b[c] = -b[c];
  }
}

// Calls fold(F, …) of this instruction set for each block of the panel, unpacked.
template <Format F>
FASTPOWER_TARGET static void pass_words(int64_t in, const char* panel, const char* next, const char* rows,
                                        int64_t stride, int64_t count, float* acc) {
  UnpackedBlock block;
  const int64_t chunks = in / file_block(F), bytes = quantised_panel_bytes(F, in);
  std::memset(acc, 0, static_cast<size_t>(count) * kColumns * sizeof(float));
  const uint8_t* chunk = reinterpret_cast<const uint8_t*>(panel);
  int64_t index = 0;
  for (int64_t i = 0; i < chunks; ++i, chunk += chunk_bytes(F)) {
    // Into L2, so that unpacking never waits: the lines of the chunk two blocks ahead, or of the next panel.
    for (int64_t part = 0; part < blocks_of_chunk(F); ++part, ++index) {
      int64_t ahead = i * chunk_bytes(F) + part * block_bytes(F) + kFetched;
      const char* line = panel + ahead;
      if (ahead >= bytes) line = next + (ahead - bytes);
      for (int64_t at = 0; at < block_bytes(F); at += 64) __builtin_prefetch(line + at, 0, 2);
      unpack_words<F>(chunk + header_bytes(F) + part * block_bytes(F), block.words);
      unpack_scales<F>(chunk, part, block.a, block.b);
      multiply<F>(block, rows + index * static_cast<int64_t>(sizeof(RowBlock)), stride, count, acc);
    }
  }
}

#define FASTPOWER_EACH_FORMAT(CALL) \
  switch (format) {                 \
    case Format::q4_0:              \
      return CALL(Format::q4_0);    \
    case Format::q4_1:              \
      return CALL(Format::q4_1);    \
    case Format::q5_0:              \
      return CALL(Format::q5_0);    \
    case Format::q5_1:              \
      return CALL(Format::q5_1);    \
    case Format::q8_0:              \
      return CALL(Format::q8_0);    \
    case Format::q4_k:              \
      return CALL(Format::q4_k);    \
    case Format::q5_k:              \
      return CALL(Format::q5_k);    \
    case Format::q6_k:              \
      return CALL(Format::q6_k);    \
    case Format::dense:             \
      return;                       \
  }
