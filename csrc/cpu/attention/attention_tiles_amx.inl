// Scores and weighted sums of bfloat16 on AMX tiles: kTile query rows, or half as many, and the kSplit keys
// of a split.
//
// Scores: tiles of 16 keys × 32 words, read where they are, times the queries' words in pairs. A query is
// taken as it came, unscaled. Weighted sums: tdpbf16ps takes bfloat16, so a weight goes in as two of them,
// itself rounded and what that left, which keeps 16 of its 24 bits; the two parts are summed apart and added
// at the end. Values are interleaved, two keys to a pair. tdpbf16ps adds the pairs of one output in
// ascending order, whatever other rows are in the tile.
//
// All tiles are 16 × 64 bytes and there are four of them, whatever part of them is of use: tiles of other
// shapes, or more of them, were measured at a third of the speed (one loses the renaming of registers).

template <>
struct Tiles<bfloat16> {
  static constexpr bool kHave = true;
  static constexpr int kTile = 16;  // rows of a tile, and words of 32 bits in one
  // A tile of weights has the first parts in one half of its rows, the second parts in the other.
  static constexpr int kRows = kTile / 2;

  // Lines asked for at a time; by the end of a block of rows all that a head needs have been.
  static constexpr int kAhead = 8;

  static bool fit(int64_t head_dim) { return head_dim % 32 == 0; }

  // Floats of working memory.
  static int64_t floats(int64_t rows, int64_t dim) {
    return dim / 2 * query_words(rows) + 2 * kSplit * dim / 2 + kSplit * kTile + kTile * kSplit / 2 +
           kTile * dim;
  }

  void begin(int64_t rows, int64_t dim, float* memory) {
    dim_ = static_cast<int>(dim);
    words_ = query_words(rows);
    queries_ = reinterpret_cast<uint32_t*>(memory);
    keys_ = reinterpret_cast<bfloat16*>(memory += dim / 2 * words_);
    values_ = reinterpret_cast<bfloat16*>(memory += kSplit * dim / 2);
    scores_ = memory += kSplit * dim / 2;
    weights_ = reinterpret_cast<bfloat16*>(memory += kSplit * kTile);
    sums_ = memory += kTile * kSplit / 2;
    configure();
  }
  void end() const { _tile_release(); }

  // Word d of every row beside each other, in pairs of d.
  void load_query(int64_t row, const bfloat16* query) {
    uint32_t* to = queries_ + row;
    const int64_t stride = words_;
    for (const bfloat16* end = query + dim_; query < end; query += 2, to += stride) std::memcpy(to, query, 4);
  }

  // The keys and values of a split. `even`: 16 keys from a multiple of 16 on lie at equal distances.
  void load_keys(const bfloat16* const* rows, int64_t head_offset, bool even, int64_t stride) {
    for (int i = 0; i < kSplit; i += kTile) key_tiles_[i / kTile] = rows[i] + head_offset;
    key_bytes_ = stride * 2;
    if (even) return;
    for (int i = 0; i < kSplit; ++i) std::memcpy(keys_ + i * dim_, rows[i] + head_offset, dim_ * 2);
    for (int i = 0; i < kSplit; i += kTile) key_tiles_[i / kTile] = keys_ + i * dim_;
    key_bytes_ = dim_ * 2;
  }

  // Within 32 columns the pairs come in the order of unpack: columns 0–3, 8–11, 16–19, 24–27, then the rest.
  void load_values(const bfloat16* const* rows, int64_t head_offset, Ahead* ahead) {
    for (int i = 0; i < kSplit; i += 2) {
      const bfloat16 *even = rows[i] + head_offset, *odd = rows[i + 1] + head_offset;
      char* to = reinterpret_cast<char*>(values_) + i / 2 * 64;
      ahead->ask(dim_ * kAhead / 128);
      for (int d = 0; d < dim_; d += 32, to += 2 * kSplit * 32) {
        const __m512i x = _mm512_loadu_si512(even + d), y = _mm512_loadu_si512(odd + d);
        _mm512_storeu_si512(to, _mm512_unpacklo_epi16(x, y));
        _mm512_storeu_si512(to + kSplit * 32, _mm512_unpackhi_epi16(x, y));
      }
    }
  }

  // Scores of the kTile rows from `row` on; what lies behind the last row is not of use.
  void multiply(int64_t row, Ahead* ahead) const {
    const auto bytes = static_cast<int64_t>(words_ * 4);
    for (int g = 0; g < kSplit / kTile; g += 2) {
      _tile_zero(0);
      _tile_zero(1);
      for (int d = 0; d < dim_; d += 32) {
        _tile_loadd(3, queries_ + d / 2 * words_ + row, bytes);
        ahead->ask(kAhead);
        _tile_loadd(2, key_tiles_[g] + d, key_bytes_);
        _tile_dpbf16ps(0, 2, 3);
        ahead->ask(kAhead);
        _tile_loadd(2, key_tiles_[g + 1] + d, key_bytes_);
        _tile_dpbf16ps(1, 2, 3);
      }
      _tile_stored(0, scores_ + g * kTile * kTile, 64);
      _tile_stored(1, scores_ + (g + 1) * kTile * kTile, 64);
    }
  }

  // scores[r][i] of R of those rows, from the `first`th on, times scale.
  template <int R>
  void score(int first, float scale, float* scores) const {
    for (int i = 0; i < kSplit; i += kTile)
      for (int q = 0; q < R; q += 4) {
        F t[4];
        Simd::quarter(reinterpret_cast<const char*>(scores_ + i * kTile + first + q), kTile * 4, t);
        for (int r = q; r < smaller(R, q + 4); ++r)
          Simd::store(scores + r * kSplit + i, Simd::mul(t[r - q], Simd::set(scale)));
      }
  }

  // a[r] = sum over keys of p[r][k] values[k], in the order of k.
  template <int R>
  void sum(const float* p, float* a, Ahead* ahead) const {
    for (int r = 0; r < R; ++r)
      for (int i = 0; i < kSplit; i += 32) {
        const F x = Simd::load(p + r * kSplit + i), y = Simd::load(p + r * kSplit + i + 16);
        const __m512bh high = _mm512_cvtne2ps_pbh(y, x);
        const __m512i bits = reinterpret_cast<const __m512i&>(high);
        const F left_x = Simd::sub(x, widen(_mm512_castsi512_si256(bits)));
        const F left_y = Simd::sub(y, widen(_mm512_extracti64x4_epi64(bits, 1)));
        const __m512bh low = _mm512_cvtne2ps_pbh(left_y, left_x);
        _mm512_storeu_si512(weights_ + r * kSplit + i, bits);
        _mm512_storeu_si512(weights_ + (kRows + r) * kSplit + i, reinterpret_cast<const __m512i&>(low));
      }
    for (int d = 0; d < dim_; d += 32) {
      const bfloat16* values = values_ + d * kSplit;
      _tile_zero(0);
      _tile_zero(1);
      for (int i = 0; i < kSplit; i += 32, values += 32 * 16) {
        _tile_loadd(2, weights_ + i, kSplit * 2);
        ahead->ask(kAhead);
        _tile_loadd(3, values, 64);
        _tile_dpbf16ps(0, 2, 3);
        ahead->ask(kAhead);
        _tile_loadd(3, values + kSplit * 16, 64);
        _tile_dpbf16ps(1, 2, 3);
      }
      _tile_stored(0, sums_ + d, dim_ * 4);
      _tile_stored(1, sums_ + d + 16, dim_ * 4);
    }
    const __m512i first = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    for (int r = 0; r < R; ++r)
      for (int d = 0; d < dim_; d += 32) {
        const float *high = sums_ + r * dim_ + d, *low = sums_ + (kRows + r) * dim_ + d;
        const F x = Simd::add(Simd::load(high), Simd::load(low));
        const F y = Simd::add(Simd::load(high + 16), Simd::load(low + 16));
        Simd::store(a + r * dim_ + d, _mm512_permutex2var_ps(x, first, y));
        Simd::store(a + r * dim_ + d + 16, _mm512_permutex2var_ps(x, second, y));
      }
  }

 private:
  // Of the last row on, a tile of queries reaches over by 15.
  static int64_t query_words(int64_t rows) { return (rows + 2 * (kTile - 1)) / kTile * kTile; }

  // Tiles 0 and 1 are sums, 2 and 3 factors.
  static void configure() {
    TileConfig config;
    for (int tile = 0; tile < 4; ++tile) config.set(tile, 16, 64);
    config.load();
  }

  static F widen(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }

  uint32_t* queries_;  // (dim / 2, words_)
  bfloat16* keys_;     // (kSplit, dim), where a tile cannot read them in place
  bfloat16* values_;   // (dim / 16, kSplit / 2, 16 pairs)
  float* scores_;      // (kSplit, kTile)
  bfloat16* weights_;  // (kTile, kSplit): kRows rounded weights, then what that left of them
  float* sums_;        // (kTile, dim)
  const bfloat16* key_tiles_[kSplit / kTile];
  int64_t key_bytes_;
  int dim_;
  int64_t words_;
};
