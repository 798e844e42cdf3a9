// The steps of attention over one split of keys, in terms of a vector type `Simd` that the including file
// defines first: scores, weights, weighted sums, and folding them into what a row has so far.
//
//   Simd::F        kWidth floats;  kRows query rows are worked on together, as the registers allow
//   load(p, n)     n < kWidth only where head_dim is not a multiple of kWidth; the rest is 0
//   block, transpose(rows, d, …)  block words of kWidth keys at once, without masks
//   load_pair      two vectors in an order of their own; to_pair_order and from_pair_order convert sums
//   max(a, b)      b if one of them is NaN
//   reduce_*       in one fixed order
//   split_exponent x = n + f: returns f in [-1/2, 1/2], gives 2^n
//
// Scores are kept in units of log 2, so that the softmax needs 2^x only.

using F = Simd::F;
constexpr int W = Simd::kWidth;
constexpr int kVectors = 4;      // vectors that one row of the register tile spans
constexpr int kDirectRows = 12;  // up to here values are read where they are; more rows pay for packing them
constexpr float kLog2e = 1.44269504f;

inline int64_t smaller(int64_t x, int64_t y) { return x < y ? x : y; }
inline int64_t larger(int64_t x, int64_t y) { return x > y ? x : y; }

// 2^x, relative error 1e-7; 0 below 2^-126.
inline F exp2(F x) {
  F p2;
  const F f = Simd::split_exponent(x, &p2);
  F y = Simd::set(1.54762791e-4f);
  y = Simd::fma(y, f, Simd::set(1.34002359e-3f));
  y = Simd::fma(y, f, Simd::set(9.61800385e-3f));
  y = Simd::fma(y, f, Simd::set(5.55032790e-2f));
  y = Simd::fma(y, f, Simd::set(2.40226507e-1f));
  y = Simd::fma(y, f, Simd::set(6.93147182e-1f));
  y = Simd::fma(y, f, Simd::set(1.0f));
  return Simd::mul(y, p2);
}

// Odd polynomial near 0, where 1 - 2 / (e^2x + 1) would lose every digit.
inline F tanh(F x) {
  const F size = Simd::abs(x), square = Simd::mul(x, x);
  F small = Simd::set(-5.67242550e-3f);
  small = Simd::fma(small, square, Simd::set(2.06031520e-2f));
  small = Simd::fma(small, square, Simd::set(-5.37252314e-2f));
  small = Simd::fma(small, square, Simd::set(1.33311853e-1f));
  small = Simd::fma(small, square, Simd::set(-3.33332628e-1f));
  small = Simd::fma(Simd::mul(small, square), x, x);
  // e^-2|x| rather than e^2|x|: it cannot overflow.
  const F e = exp2(Simd::mul(size, Simd::set(-2.0f * kLog2e)));
  const F one = Simd::set(1.0f);
  const F large = Simd::div(Simd::sub(one, e), Simd::add(one, e));
  const F signed_large = Simd::less_select(x, Simd::zero(), Simd::sub(Simd::zero(), large), large);
  return Simd::less_select(size, Simd::set(0.625f), small, signed_large);
}

inline void clear(float* x, int64_t n) {
  for (int64_t i = 0; i < n; i += W) Simd::store(x + i, Simd::zero());
}

// The lines of the next split, asked for a few at a time while this one is worked on: pages lie anywhere, so
// the hardware cannot guess where the next one is, and all lines at once would block the loads of this split.
class Ahead {
 public:
  void clear() { runs_ = next_ = 0, at_ = end_ = nullptr; }
  void add(const void* begin, int64_t bytes) {
    begin_[runs_] = static_cast<const char*>(begin);
    bytes_[runs_++] = bytes;
  }
  void ask(int lines) {
    while (lines > 0) {
      if (at_ >= end_) {
        if (next_ == runs_) return;
        at_ = begin_[next_];
        end_ = at_ + bytes_[next_++];
      }
      const char* at = at_;  // not in memory while it is counted up
      const char* const end = end_ - at > int64_t{lines} * 64 ? at + int64_t{lines} * 64 : end_;
      lines -= static_cast<int>((end - at + 63) / 64);
      for (; at < end; at += 64) __builtin_prefetch(at, 0, 2);
      at_ = at;
    }
  }

 private:
  const char* begin_[2 * kSplit];
  int64_t bytes_[2 * kSplit];
  const char *at_, *end_;
  int runs_, next_;
};

// keys[d][i] = word d of row i, transposed W keys at a time; in the last W keys those from count on are 0.
// `even`: W keys from a multiple of W on lie at equal distances, `stride`.
template <class T>
void pack_keys(const T* const* rows, int64_t head_offset, bool even, int64_t stride, int count, int dim,
               float* keys, Ahead* ahead, int lines) {
  for (int i = 0; i < count; i += W, keys += W) {
    int d = 0;
    if (even && i + W <= count)
      for (; d + Simd::block<T>() <= dim; d += Simd::block<T>()) {
        ahead->ask(lines);
        Simd::transpose(rows[i] + head_offset + d, stride, keys + d * kSplit, kSplit);
      }
    for (; d < dim; d += W) {
      F block[W];
      for (int k = 0; k < W; ++k)
        block[k] = i + k < count ? Simd::load(rows[i + k] + head_offset + d, dim - d) : Simd::zero();
      Simd::transpose(block, keys + d * kSplit, kSplit, dim - d);
    }
  }
}

template <class T>
void pack_values(const T* const* rows, int64_t head_offset, int count, int dim, int padded, float* values) {
  for (int i = 0; i < count; ++i, values += padded) {
    const T* row = rows[i] + head_offset;
    int d = 0;
    for (; d + W <= dim; d += W) Simd::store(values + d, Simd::load(row + d));
    if (d < dim) {
      Simd::store(values + d, Simd::load(row + d, dim - d));
      d += W;
    }
    for (; d < padded; d += W) Simd::store(values + d, Simd::zero());
  }
}

// scores[r][i] = sum_d queries[r][d] keys[d][i]: one chain of fused multiply-adds per score, in the order of
// d. Only vectors with one of the first `count` keys are computed.
// N vectors of keys from key 0 on.
template <int R, int N>
void score_vectors(const float* queries, const float* keys, int dim, float* scores, Ahead* ahead, int lines) {
  F sum[R][N];
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < N; ++j) sum[r][j] = Simd::zero();
  for (int d = 0; d < dim; ++d) {
    ahead->ask(lines);
    F k[N];
    for (int j = 0; j < N; ++j) k[j] = Simd::load(keys + d * kSplit + j * W);
    for (int r = 0; r < R; ++r) {
      const F q = Simd::set(queries[r * dim + d]);
      for (int j = 0; j < N; ++j) sum[r][j] = Simd::fma(q, k[j], sum[r][j]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < N; ++j) Simd::store(scores + r * kSplit + j * W, sum[r][j]);
}

template <int R>
void score_rows(const float* queries, const float* keys, int count, int dim, float* scores, Ahead* ahead,
                int lines) {
  int i = 0;
  for (; i + (kVectors - 1) * W < count; i += kVectors * W)
    score_vectors<R, kVectors>(queries, keys + i, dim, scores + i, ahead, lines);
  for (; i + W < count; i += 2 * W) score_vectors<R, 2>(queries, keys + i, dim, scores + i, ahead, lines);
  if (i < count) score_vectors<R, 1>(queries, keys + i, dim, scores + i, ahead, lines);
}

// a[r][c ...] += sum over keys [begin, end) of p[r][k] values[k][c ...], in the order of k.
template <int R, int N, class T>
void add_columns(const float* p, const T* const* values, int64_t offset, int c, int padded, int begin,
                 int end, float* a, Ahead* ahead, int lines) {
  F sum[R][N];
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < N; ++j) sum[r][j] = Simd::load(a + r * padded + c + j * W);
  if constexpr (N > 1)
    for (int r = 0; r < R; ++r)
      for (int j = 0; j < N; j += 2) Simd::to_pair_order(T{}, &sum[r][j], &sum[r][j + 1]);
  for (int k = begin; k < end; ++k) {
    ahead->ask(lines);
    const T* row = values[k] + offset + c;
    F v[N];
    if constexpr (N == 1)
      v[0] = Simd::load(row);
    else
      for (int j = 0; j < N; j += 2) Simd::load_pair(row + j * W, &v[j], &v[j + 1]);
    for (int r = 0; r < R; ++r) {
      const F weight = Simd::set(p[r * kSplit + k]);
      for (int j = 0; j < N; ++j) sum[r][j] = Simd::fma(weight, v[j], sum[r][j]);
    }
  }
  if constexpr (N > 1)
    for (int r = 0; r < R; ++r)
      for (int j = 0; j < N; j += 2) Simd::from_pair_order(T{}, &sum[r][j], &sum[r][j + 1]);
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < N; ++j) Simd::store(a + r * padded + c + j * W, sum[r][j]);
}

template <int R, class T>
void add_values(const float* p, const T* const* values, int64_t offset, int padded, int begin, int end,
                float* a, Ahead* ahead, int lines) {
  if (begin >= end) return;
  int c = 0;
  for (; c + kVectors * W <= padded; c += kVectors * W)
    add_columns<R, kVectors>(p, values, offset, c, padded, begin, end, a, ahead, lines);
  for (; c + 2 * W <= padded; c += 2 * W)
    add_columns<R, 2>(p, values, offset, c, padded, begin, end, a, ahead, lines);
  for (; c < padded; c += W) add_columns<R, 1>(p, values, offset, c, padded, begin, end, a, ahead, lines);
}

// Scores of the keys [begin, end) that a row sees become weights 2^(s - m); gives m and the sum of the
// weights. Bit i of hidden[r] hides key i of that range. No row sees keys from count on. The rows take turns
// so that their chains of operations overlap.
template <int R>
void weigh(float* p, const int* begin, const int* end, const uint64_t* hidden, int count, float cap, float* m,
           float* sum) {
  const int limit = (count + W - 1) / W * W;
  F top[R], base[R], total[R];
  for (int r = 0; r < R; ++r) {
    float* row = p + r * kSplit;
    if (cap > 0)
      for (int i = 0; i < limit; i += W)
        Simd::store(row + i, Simd::mul(Simd::set(cap), tanh(Simd::load(row + i))));
    for (int i = 0; i < begin[r]; ++i) row[i] = -INFINITY;
    for (int i = end[r]; i < limit; ++i) row[i] = -INFINITY;
    for (uint64_t h = hidden[r]; h; h &= h - 1) row[__builtin_ctzll(h)] = -INFINITY;
    top[r] = Simd::set(-INFINITY);
    total[r] = Simd::zero();
  }
  for (int i = 0; i < limit; i += W)
    for (int r = 0; r < R; ++r) top[r] = Simd::max(top[r], Simd::load(p + r * kSplit + i));
  for (int r = 0; r < R; ++r) {
    m[r] = Simd::reduce_max(top[r]);
    // A split whose every score is -inf adds nothing; -inf - -inf must not make it NaN.
    base[r] = Simd::set(m[r] == -INFINITY ? 0.0f : m[r]);
  }
  for (int i = 0; i < limit; i += W)
    for (int r = 0; r < R; ++r) {
      const F weight = exp2(Simd::sub(Simd::load(p + r * kSplit + i), base[r]));
      Simd::store(p + r * kSplit + i, weight);
      total[r] = Simd::add(total[r], weight);
    }
  for (int r = 0; r < R; ++r) sum[r] = Simd::reduce_add(total[r]);
}

// Folds one split (a, m, l) of n <= W rows into their states (A, M, L); the rows' a are `stride` apart. A row
// that saw nothing (m = -inf, l = 0) stays as it is; its a is not looked at.
inline __attribute__((always_inline)) void fold_rows(int n, float* const* states, int padded, const float* a,
                                                     int64_t stride, const float* m, const float* l) {
  alignas(64) float old_factor[W] = {}, new_factor[W] = {}, sum[W] = {}, part[W] = {};
  float top[W];
  for (int r = 0; r < n; ++r) {
    const float M = states[r][padded];
    top[r] = m[r] > M ? m[r] : M;
    old_factor[r] = M == top[r] ? 0.0f : M - top[r];  // also -inf - -inf
    new_factor[r] = m[r] == top[r] ? 0.0f : m[r] - top[r];
    sum[r] = states[r][padded + 1];
    part[r] = l[r];
  }
  const F x = exp2(Simd::load(old_factor)), y = exp2(Simd::load(new_factor));
  Simd::store(old_factor, x);
  Simd::store(new_factor, y);
  Simd::store(sum, Simd::fma(Simd::load(part), y, Simd::mul(Simd::load(sum), x)));
  for (int r = 0; r < n; ++r) {
    if (m[r] == -INFINITY && l[r] == 0.0f) continue;
    float* state = states[r];
    const F old_scale = Simd::set(old_factor[r]), new_scale = Simd::set(new_factor[r]);
    for (int d = 0; d < padded; d += W)
      Simd::store(state + d, Simd::fma(Simd::load(a + r * stride + d), new_scale,
                                       Simd::mul(Simd::load(state + d), old_scale)));
    state[padded] = top[r];
    state[padded + 1] = sum[r];
  }
}

template <int R>
void fold(float* const* states, int padded, const float* a, const float* m, const float* l) {
  static_assert(R <= W);
  fold_rows(R, states, padded, a, padded, m, l);
}

inline void empty_row(float* state, int padded) {
  clear(state, padded);
  state[padded] = -INFINITY;
  state[padded + 1] = 0.0f;
}

template <class T>
void write_row(const float* state, int dim, int padded, T* out) {
  const F sum = Simd::set(state[padded + 1]);
  for (int d = 0; d < dim; d += W) Simd::store(out + d, Simd::div(Simd::load(state + d), sum), dim - d);
}

// Products on matrix tiles, for a T and a head_dim that an instruction set has a variant of them for. They
// take the splits that a row sees all of; the rest goes through the vectors above, so that what a row must
// not see is never touched.
template <class T>
struct Tiles {
  static constexpr bool kHave = false;
  static bool fit(int64_t) { return false; }
  static int64_t floats(int64_t, int64_t) { return 0; }
};
