// The attention of one task, in terms of a vector type `Simd` that the including file defines first.
//
// Included once per instruction set, inside that set's namespace and target region, so that every function
// here is compiled for it. Templates of the standard library are avoided: a copy compiled here could be the
// one that the linker keeps for the whole extension, and then run on an older machine.
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

// Working memory of one task.
struct Scratch {
  float* queries;  // (rows, D), scaled
  float* keys;     // (D, kSplit): transposed
  float* values;   // (kSplit, padded D)
  float* p;        // (kRows, kSplit): scores, then weights
  float* a;        // (kRows, padded D): one split's weighted sum
  float* state;    // (rows, record_size)

  void reserve(int64_t rows, int64_t dim, int64_t record_size) {
    const int64_t padded = padded_dim(dim);
    const int64_t sizes[] = {rows * dim,           dim * kSplit,         kSplit * padded,
                             Simd::kRows * kSplit, Simd::kRows * padded, rows * record_size};
    int64_t total = 0;
    for (int64_t size : sizes) total += (size + 15) / 16 * 16;
    float* next = attention_scratch(total);
    float** parts[] = {&queries, &keys, &values, &p, &a, &state};
    for (int i = 0; i < 6; ++i) {
      *parts[i] = next;
      next += (sizes[i] + 15) / 16 * 16;
    }
  }
};

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
    for (; lines > 0; --lines, at_ += 64) {
      if (at_ >= end_) {
        if (next_ == runs_) return;
        at_ = begin_[next_];
        end_ = at_ + bytes_[next_++];
      }
      __builtin_prefetch(at_, 0, 2);
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

// Folds one split (a, m, l) of R rows into their states (A, M, L). A row that saw nothing (m = -inf, l = 0)
// stays as it is; its a is not looked at.
template <int R>
void fold(float* const* states, int padded, const float* a, const float* m, const float* l) {
  static_assert(R <= W);
  alignas(64) float old_factor[W] = {}, new_factor[W] = {}, sum[W] = {}, part[W] = {};
  float top[R];
  for (int r = 0; r < R; ++r) {
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
  for (int r = 0; r < R; ++r) {
    if (m[r] == -INFINITY && l[r] == 0.0f) continue;
    float* state = states[r];
    const F old_scale = Simd::set(old_factor[r]), new_scale = Simd::set(new_factor[r]);
    for (int d = 0; d < padded; d += W)
      Simd::store(state + d, Simd::fma(Simd::load(a + r * padded + d), new_scale,
                                       Simd::mul(Simd::load(state + d), old_scale)));
    state[padded] = top[r];
    state[padded + 1] = sum[r];
  }
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

template <class T>
class Worker {
 public:
  Worker(const AttentionCall& call, const AttentionTask& task, const AttentionTask* following)
      : call_(call), task_(task), following_(following), a_(*call.a) {
    dim_ = a_.head_dim;
    padded_ = padded_dim(a_.head_dim);
    group_ = a_.q_heads / a_.kv_heads;
    rows_ = task.tokens * group_;
    cap_ = a_.softcap * kLog2e;
    token_stride_ = a_.kv_heads * a_.head_dim;
    s_.reserve(rows_ * (task.head_end - task.head_begin), dim_, call.record_size);
    direct_ = dim_ == padded_ && dim_ % (2 * W) == 0 && rows_ <= kDirectRows;
    for (int i = 0; i < kSplit; ++i) value_rows_[i] = s_.values + i * padded_;
    // Half of the lines are asked for while keys are packed, half while rows are multiplied.
    const int64_t lines = 2 * kSplit * (dim_ * sizeof(T) + 63) / 64;
    lines_per_block_ = (lines / 2 * W * Simd::block<T>() + kSplit * dim_ - 1) / (kSplit * dim_);
    lines_per_step_ = (lines / 2 + dim_ + kSplit - 1) / (dim_ + kSplit);
  }

  void run() {
    const bool keep = task_.whole || task_.first;
    for (int64_t h = task_.head_begin; h < task_.head_end; ++h) {
      load_queries(h);
      for (int64_t r = 0; keep && r < rows_; ++r) empty_row(state(h, r), padded_);
    }
    Split now, next;
    ahead_.clear();
    locate(task_, task_.begin, &next);
    ahead_.clear();  // it is needed now
    for (int64_t split = task_.begin; split < task_.end; ++split) {
      now = next;
      ahead_.clear();
      if (split + 1 < task_.end)
        locate(task_, split + 1, &next);
      else if (following_)
        locate(*following_, following_->begin, &next);
      for (int64_t h = task_.head_begin; h < task_.head_end; ++h) {
        now.offset = h * dim_;
        pack(now);
        if (direct_)
          blocks(split, h, now.v, now.offset);
        else
          blocks(split, h, value_rows_, 0);
      }
      if (split + 1 == task_.end) ahead_.ask(kSplit * kSplit);  // a short last split asks for few by itself
    }
    for (int64_t h = task_.head_begin; keep && h < task_.head_end; ++h)
      for (int64_t r = 0; r < rows_; ++r) finish(h, r);
  }

 private:
  // Where the tokens of a split lie: `offset` words into these rows.
  struct Split {
    const T* k[kSplit];
    const T* v[kSplit];
    int64_t offset;
    int count;
  };

  int64_t token(int64_t row) const { return task_.token + row / group_; }
  int64_t head(int64_t h, int64_t row) const { return h * group_ + row % group_; }
  float* state(int64_t h, int64_t row) const {
    return s_.state + ((h - task_.head_begin) * rows_ + row) * call_.record_size;
  }
  float* queries(int64_t h, int64_t row) const {
    return s_.queries + ((h - task_.head_begin) * rows_ + row) * dim_;
  }

  void load_queries(int64_t h) {
    const float scale = a_.softcap > 0 ? a_.scale / a_.softcap : a_.scale * kLog2e;
    for (int64_t r = 0; r < rows_; ++r) {
      const T* q = static_cast<const T*>(a_.query) + token(r) * a_.query_token_stride +
                   head(h, r) * a_.query_head_stride;
      for (int d = 0; d < dim_; d += W)
        Simd::store(queries(h, r) + d, Simd::mul(Simd::load(q + d, dim_ - d), Simd::set(scale)), dim_ - d);
    }
  }

  void locate(const AttentionTask& task, int64_t split, Split* to) {
    const int64_t base = split * kSplit, begin = task.head_begin * dim_;
    const int64_t bytes = (task.head_end - task.head_begin) * dim_ * sizeof(T);
    const bool dense = bytes == token_stride_ * static_cast<int64_t>(sizeof(T));
    to->count = static_cast<int>(smaller(kSplit, a_.lengths[task.sequence] - base));
    const int32_t* table = a_.page_table + task.sequence * a_.table_stride;
    for (int64_t i = 0; i < to->count;) {
      const int64_t page = table[(base + i) / a_.page_size], offset = (base + i) % a_.page_size;
      const T* k = static_cast<const T*>(a_.k_cache) + page * a_.k_page_stride + offset * token_stride_;
      const T* v = static_cast<const T*>(a_.v_cache) + page * a_.v_page_stride + offset * token_stride_;
      const int64_t end = smaller(to->count, i + a_.page_size - offset);
      if (dense) {
        ahead_.add(k, (end - i) * bytes);
        ahead_.add(v, (end - i) * bytes);
      }
      for (; i < end; ++i, k += token_stride_, v += token_stride_) {
        to->k[i] = k;
        to->v[i] = v;
        if (dense) continue;
        ahead_.add(k + begin, bytes);
        ahead_.add(v + begin, bytes);
      }
    }
  }

  void pack(const Split& now) {
    pack_keys(now.k, now.offset, a_.page_size % W == 0, token_stride_, now.count, dim_, s_.keys, &ahead_,
              lines_per_block_);
    if (!direct_) pack_values(now.v, now.offset, now.count, dim_, padded_, s_.values);
  }

  template <class V>
  void blocks(int64_t split, int64_t h, const V* const* values, int64_t offset) {
    int64_t r = 0;
    for (; r + Simd::kRows <= rows_; r += Simd::kRows) block<Simd::kRows>(split, h, r, values, offset);
    rest<Simd::kRows - 1>(split, h, r, values, offset);
  }

  template <int R, class V>
  void rest(int64_t split, int64_t h, int64_t r, const V* const* values, int64_t offset) {
    if constexpr (R > 0) {
      if (rows_ - r == R)
        block<R>(split, h, r, values, offset);
      else
        rest<R - 1>(split, h, r, values, offset);
    }
  }

  // Of the keys [0, end) of a split those that a tree hides from a token, as bits.
  uint64_t hidden_keys(int64_t token, int64_t split, int end) const {
    static_assert(kSplit == 64, "a split's keys are the bits of a word");
    if (!a_.ancestors || end == 0) return 0;
    const int64_t s = task_.sequence, context = a_.lengths[s] - (a_.query_starts[s + 1] - a_.query_starts[s]);
    const int64_t start = context - split * kSplit;  // where the new tokens start
    if (start >= kSplit) return 0;
    const uint64_t word = static_cast<uint64_t>(a_.ancestors[token]);
    const uint64_t seen = start >= 0 ? word << start | ((uint64_t{1} << start) - 1) : word >> -start;
    return ~seen & (~uint64_t{0} >> (kSplit - end));
  }

  // One split for the rows [row, row + R). Masked keys are left out, not multiplied by 0: what they hold (a
  // later token's infinity) is none of this row's business.
  template <int R, class V>
  void block(int64_t split, int64_t h, int64_t row, const V* const* values, int64_t offset) {
    int begin[R], end[R], common_begin = 0, common_end = kSplit, count = 0;
    uint64_t hidden[R];
    for (int r = 0; r < R; ++r) {
      const int64_t own = call_.position[token(row + r)] - split * kSplit;
      const int64_t first = a_.window > 0 ? own - a_.window + 1 : 0;
      begin[r] = static_cast<int>(smaller(kSplit, larger(0, first)));
      end[r] = static_cast<int>(larger(begin[r], smaller(kSplit, own + 1)));
      common_begin = larger(common_begin, begin[r]);
      common_end = smaller(common_end, end[r]);
      hidden[r] = hidden_keys(token(row + r), split, end[r]);
      if (hidden[r]) common_end = smaller(common_end, __builtin_ctzll(hidden[r]));
      if (begin[r] < end[r]) count = static_cast<int>(larger(count, end[r]));
    }
    float m[R], l[R];
    if (count > 0) {
      score_rows<R>(queries(h, row), s_.keys, count, dim_, s_.p, &ahead_, lines_per_step_);
      weigh<R>(s_.p, begin, end, hidden, count, cap_, m, l);
      clear(s_.a, R * padded_);
      common_end = larger(common_begin, common_end);
      const auto one_row = [&](int r, int first, int last) {
        add_values<1>(s_.p + r * kSplit, values, offset, padded_, first, last, s_.a + r * padded_, &ahead_,
                      0);
      };
      for (int r = 0; r < R; ++r) one_row(r, begin[r], smaller(end[r], common_begin));
      add_values<R>(s_.p, values, offset, padded_, common_begin, common_end, s_.a, &ahead_, lines_per_step_);
      for (int r = 0; r < R; ++r) {
        int first = static_cast<int>(larger(begin[r], common_end));
        for (uint64_t h = hidden[r]; h; h &= h - 1) {
          const int key = __builtin_ctzll(h);
          one_row(r, first, key);
          first = key + 1;
        }
        one_row(r, first, end[r]);
      }
    }
    for (int r = 0; r < R; ++r)
      if (begin[r] == end[r]) m[r] = -INFINITY, l[r] = 0.0f;
    if (task_.whole || task_.first) {
      float* states[R];
      for (int r = 0; r < R; ++r) states[r] = state(h, row + r);
      fold<R>(states, padded_, s_.a, m, l);
      return;
    }
    for (int r = 0; r < R; ++r) {
      float* record = call_.record(token(row + r), split - task_.record_base, head(h, row + r));
      std::memcpy(record, s_.a + r * padded_, padded_ * sizeof(float));
      record[padded_] = m[r];
      record[padded_ + 1] = l[r];
    }
  }

  void finish(int64_t h, int64_t r) const {
    if (task_.whole)
      write_row(state(h, r), dim_, padded_,
                static_cast<T*>(a_.out) + (token(r) * a_.q_heads + head(h, r)) * dim_);
    else
      std::memcpy(call_.record(token(r), 0, head(h, r)), state(h, r), (padded_ + 2) * sizeof(float));
  }

  const AttentionCall& call_;
  const AttentionTask& task_;
  const AttentionTask* following_;  // what this thread does next, or null
  const PagedAttention& a_;
  Scratch s_;
  Ahead ahead_;
  const float* value_rows_[kSplit];  // of packed values
  bool direct_;                      // values are read where they are
  int dim_, padded_, lines_per_block_, lines_per_step_;
  int64_t group_, rows_, token_stride_;
  float cap_;
};

void run_task(const AttentionCall& call, const AttentionTask& task, const AttentionTask* following) {
  switch (call.a->dtype) {
    case Dtype::float32:
      Worker<float>(call, task, following).run();
      break;
    case Dtype::bfloat16:
      Worker<bfloat16>(call, task, following).run();
      break;
    case Dtype::float16:
      Worker<float16>(call, task, following).run();
      break;
  }
}

template <class T>
void fold_heads(const AttentionCall& call, int64_t token, int64_t records) {
  const PagedAttention& a = *call.a;
  const int padded = padded_dim(a.head_dim);
  for (int64_t h = 0; h < a.q_heads; ++h) {
    float* state = call.record(token, 0, h);
    for (int64_t i = 1; i < records; ++i) {
      const float* record = call.record(token, i, h);
      fold<1>(&state, padded, record, record + padded, record + padded + 1);
    }
    write_row(state, a.head_dim, padded, static_cast<T*>(a.out) + (token * a.q_heads + h) * a.head_dim);
  }
}

void fold_task(const AttentionCall& call, int64_t token, int64_t tokens, int64_t records) {
  for (int64_t t = token; t < token + tokens; ++t) switch (call.a->dtype) {
      case Dtype::float32:
        fold_heads<float>(call, t, records);
        break;
      case Dtype::bfloat16:
        fold_heads<bfloat16>(call, t, records);
        break;
      case Dtype::float16:
        fold_heads<float16>(call, t, records);
        break;
    }
}

extern const AttentionKernel attention_kernel{run_task, fold_task};
