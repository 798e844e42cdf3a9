// The attention of one task, in terms of a vector type `Simd` that the including file defines first.
//
// Included once per instruction set, inside that set's namespace and target region, so that every function
// here is compiled for it. Templates of the standard library are avoided: a copy compiled here could be the
// one that the linker keeps for the whole extension, and then run on an older machine.
//
//   Simd::F        kWidth floats;  kRows query rows are worked on together, as the registers allow
//   load(p, n)     n < kWidth only where head_dim is not a multiple of kWidth; the rest is 0
//   max(a, b)      b if one of them is NaN
//   reduce_*       in one fixed order
//   split_exponent x = n + f: returns f in [-1/2, 1/2], gives 2^n
//
// Scores are kept in units of log 2, so that the softmax needs 2^x only.

using F = Simd::F;
constexpr int W = Simd::kWidth;
constexpr int kVectors = 4;  // vectors that one row of the register tile spans
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

// keys[d][i] = row i, word d. Keys from count on are 0: their scores are computed and dropped.
template <class T>
void pack_keys(const T* const* rows, int count, int dim, float* keys) {
  for (int i = 0; i < kSplit; i += W) {
    if (i >= count) {
      for (int d = 0; d < dim; ++d) Simd::store(keys + d * kSplit + i, Simd::zero());
      continue;
    }
    for (int d = 0; d < dim; d += W) {
      F block[W];
      for (int k = 0; k < W; ++k)
        block[k] = i + k < count ? Simd::load(rows[i + k] + d, dim - d) : Simd::zero();
      Simd::transpose(block, keys + d * kSplit + i, kSplit, dim - d);
    }
  }
}

template <class T>
void pack_values(const T* const* rows, int count, int dim, int padded, float* values) {
  for (int i = 0; i < count; ++i)
    for (int d = 0; d < padded; d += W)
      Simd::store(values + i * padded + d, d < dim ? Simd::load(rows[i] + d, dim - d) : Simd::zero());
}

// scores[r][i] = sum_d queries[r][d] keys[d][i]: one chain of fused multiply-adds per score, in the order of
// d.
template <int R>
void score_rows(const float* queries, const float* keys, int dim, float* scores) {
  for (int i = 0; i < kSplit; i += kVectors * W) {
    F sum[R][kVectors];
    for (int r = 0; r < R; ++r)
      for (int j = 0; j < kVectors; ++j) sum[r][j] = Simd::zero();
    for (int d = 0; d < dim; ++d) {
      F k[kVectors];
      for (int j = 0; j < kVectors; ++j) k[j] = Simd::load(keys + d * kSplit + i + j * W);
      for (int r = 0; r < R; ++r) {
        const F q = Simd::set(queries[r * dim + d]);
        for (int j = 0; j < kVectors; ++j) sum[r][j] = Simd::fma(q, k[j], sum[r][j]);
      }
    }
    for (int r = 0; r < R; ++r)
      for (int j = 0; j < kVectors; ++j) Simd::store(scores + r * kSplit + i + j * W, sum[r][j]);
  }
}

// a[r][c ...] += sum over keys [begin, end) of p[r][k] values[k][c ...], in the order of k.
template <int R, int N>
void add_columns(const float* p, const float* values, int padded, int begin, int end, float* a) {
  F sum[R][N];
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < N; ++j) sum[r][j] = Simd::load(a + r * padded + j * W);
  for (int k = begin; k < end; ++k) {
    F v[N];
    for (int j = 0; j < N; ++j) v[j] = Simd::load(values + k * padded + j * W);
    for (int r = 0; r < R; ++r) {
      const F weight = Simd::set(p[r * kSplit + k]);
      for (int j = 0; j < N; ++j) sum[r][j] = Simd::fma(weight, v[j], sum[r][j]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < N; ++j) Simd::store(a + r * padded + j * W, sum[r][j]);
}

template <int R>
void add_values(const float* p, const float* values, int padded, int begin, int end, float* a) {
  if (begin >= end) return;
  int c = 0;
  for (; c + kVectors * W <= padded; c += kVectors * W)
    add_columns<R, kVectors>(p, values + c, padded, begin, end, a + c);
  for (; c + 2 * W <= padded; c += 2 * W) add_columns<R, 2>(p, values + c, padded, begin, end, a + c);
  for (; c < padded; c += W) add_columns<R, 1>(p, values + c, padded, begin, end, a + c);
}

// Scores of the keys [begin, end) that a row sees become weights 2^(s - m); gives m and the sum of the
// weights.
inline void weigh(float* p, int begin, int end, float cap, float* m, float* sum) {
  for (int i = 0; i < begin; ++i) p[i] = -INFINITY;
  for (int i = end; i < kSplit; ++i) p[i] = -INFINITY;
  if (cap > 0) {
    for (int i = 0; i < kSplit; i += W)
      Simd::store(p + i, Simd::mul(Simd::set(cap), tanh(Simd::load(p + i))));
    for (int i = 0; i < begin; ++i) p[i] = -INFINITY;
    for (int i = end; i < kSplit; ++i) p[i] = -INFINITY;
  }
  F top = Simd::set(-INFINITY);
  for (int i = 0; i < kSplit; i += W) top = Simd::max(top, Simd::load(p + i));
  *m = Simd::reduce_max(top);
  // A split whose every score is -inf adds nothing; -inf - -inf must not make it NaN.
  const F base = Simd::set(*m == -INFINITY ? 0.0f : *m);
  F total = Simd::zero();
  for (int i = 0; i < kSplit; i += W) {
    const F weight = exp2(Simd::sub(Simd::load(p + i), base));
    Simd::store(p + i, weight);
    total = Simd::add(total, weight);
  }
  *sum = Simd::reduce_add(total);
}

// Folds one split (a, m, l) of a row into its state (A, M, L).
inline void fold_row(float* state, int padded, const float* a, float m, float l) {
  float* M = state + padded;
  float* L = M + 1;
  if (m == -INFINITY && l == 0.0f) return;
  const float top = m > *M ? m : *M;
  alignas(64) float factor[W] = {};
  factor[0] = *M == top ? 0.0f : *M - top;  // also -inf - -inf
  factor[1] = m == top ? 0.0f : m - top;
  Simd::store(factor, exp2(Simd::load(factor)));
  const F old_factor = Simd::set(factor[0]), new_factor = Simd::set(factor[1]);
  for (int d = 0; d < padded; d += W)
    Simd::store(state + d,
                Simd::fma(Simd::load(a + d), new_factor, Simd::mul(Simd::load(state + d), old_factor)));
  const F sum = Simd::fma(Simd::set(l), new_factor, Simd::mul(Simd::set(*L), old_factor));
  *L = Simd::reduce_max(sum);
  *M = top;
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
  Worker(const AttentionCall& call, const AttentionTask& task) : call_(call), task_(task), a_(*call.a) {
    dim_ = a_.head_dim;
    padded_ = padded_dim(a_.head_dim);
    heads_ = a_.q_heads / a_.kv_heads;
    rows_ = task.tokens * heads_;
    s_.reserve(rows_, dim_, call.record_size);
  }

  void run() {
    load_queries();
    const bool keep = task_.whole || task_.first;
    for (int64_t r = 0; keep && r < rows_; ++r) empty_row(state(r), padded_);
    for (int64_t split = task_.begin; split < task_.end; ++split) {
      load_split(split);
      int64_t r = 0;
      for (; r + Simd::kRows <= rows_; r += Simd::kRows) block<Simd::kRows>(split, r);
      rest<Simd::kRows - 1>(split, r);
    }
    for (int64_t r = 0; keep && r < rows_; ++r) {
      if (task_.whole)
        write_row(state(r), dim_, padded_,
                  static_cast<T*>(a_.out) + (token(r) * a_.q_heads + head(r)) * dim_);
      else
        std::memcpy(call_.record(token(r), 0, head(r)), state(r), (padded_ + 2) * sizeof(float));
    }
  }

 private:
  int64_t token(int64_t row) const { return task_.token + row / heads_; }
  int64_t head(int64_t row) const { return task_.head * heads_ + row % heads_; }
  float* state(int64_t row) const { return s_.state + row * call_.record_size; }

  void load_queries() {
    const float scale = a_.softcap > 0 ? a_.scale / a_.softcap : a_.scale * kLog2e;
    cap_ = a_.softcap * kLog2e;
    for (int64_t r = 0; r < rows_; ++r) {
      const T* q =
          static_cast<const T*>(a_.query) + token(r) * a_.query_token_stride + head(r) * a_.query_head_stride;
      for (int d = 0; d < dim_; d += W)
        Simd::store(s_.queries + r * dim_ + d, Simd::mul(Simd::load(q + d, dim_ - d), Simd::set(scale)),
                    dim_ - d);
    }
  }

  void load_split(int64_t split) {
    const T* k_rows[kSplit];
    const T* v_rows[kSplit];
    const int64_t base = split * kSplit, row = a_.kv_heads * a_.head_dim;
    const int64_t count = smaller(kSplit, a_.lengths[task_.sequence] - base);
    const int32_t* table = a_.page_table + task_.sequence * a_.table_stride;
    for (int64_t i = 0; i < count;) {
      const int64_t page = table[(base + i) / a_.page_size], offset = (base + i) % a_.page_size;
      const T* k =
          static_cast<const T*>(a_.k_cache) + page * a_.k_page_stride + offset * row + task_.head * dim_;
      const T* v =
          static_cast<const T*>(a_.v_cache) + page * a_.v_page_stride + offset * row + task_.head * dim_;
      for (const int64_t end = smaller(count, i + a_.page_size - offset); i < end; ++i, k += row, v += row) {
        k_rows[i] = k;
        v_rows[i] = v;
      }
    }
    pack_keys(k_rows, count, dim_, s_.keys);
    pack_values(v_rows, count, dim_, padded_, s_.values);
  }

  template <int R>
  void rest(int64_t split, int64_t r) {
    if constexpr (R > 0) {
      if (rows_ - r == R)
        block<R>(split, r);
      else
        rest<R - 1>(split, r);
    }
  }

  // One split for the rows [row, row + R). Masked keys are left out, not multiplied by 0: what they hold (a
  // later token's infinity) is none of this row's business.
  template <int R>
  void block(int64_t split, int64_t row) {
    int begin[R], end[R], common_begin = 0, common_end = kSplit, any = 0;
    for (int r = 0; r < R; ++r) {
      const int64_t own = call_.position[token(row + r)] - split * kSplit;
      const int64_t first = a_.window > 0 ? own - a_.window + 1 : 0;
      begin[r] = static_cast<int>(smaller(kSplit, larger(0, first)));
      end[r] = static_cast<int>(larger(begin[r], smaller(kSplit, own + 1)));
      common_begin = larger(common_begin, begin[r]);
      common_end = smaller(common_end, end[r]);
      any |= begin[r] < end[r];
    }
    float m[R] = {}, l[R] = {};
    if (any) {
      score_rows<R>(s_.queries + row * dim_, s_.keys, dim_, s_.p);
      for (int r = 0; r < R; ++r) weigh(s_.p + r * kSplit, begin[r], end[r], cap_, m + r, l + r);
      clear(s_.a, R * padded_);
      common_end = larger(common_begin, common_end);
      for (int r = 0; r < R; ++r) one_row(r, begin[r], smaller(end[r], common_begin));
      add_values<R>(s_.p, s_.values, padded_, common_begin, common_end, s_.a);
      for (int r = 0; r < R; ++r) one_row(r, larger(begin[r], common_end), end[r]);
    }
    for (int r = 0; r < R; ++r) {
      const float* a = s_.a + r * padded_;
      const bool seen = begin[r] < end[r];
      if (task_.whole || task_.first) {
        if (seen) fold_row(state(row + r), padded_, a, m[r], l[r]);
        continue;
      }
      float* record = call_.record(token(row + r), split - task_.record_base, head(row + r));
      if (seen) std::memcpy(record, a, padded_ * sizeof(float));
      record[padded_] = seen ? m[r] : -INFINITY;
      record[padded_ + 1] = seen ? l[r] : 0.0f;
    }
  }

  void one_row(int r, int begin, int end) {
    add_values<1>(s_.p + r * kSplit, s_.values, padded_, begin, end, s_.a + r * padded_);
  }

  const AttentionCall& call_;
  const AttentionTask& task_;
  const PagedAttention& a_;
  Scratch s_;
  int dim_, padded_;
  int64_t heads_, rows_;
  float cap_ = 0;
};

void run_task(const AttentionCall& call, const AttentionTask& task) {
  switch (call.a->dtype) {
    case Dtype::float32:
      Worker<float>(call, task).run();
      break;
    case Dtype::bfloat16:
      Worker<bfloat16>(call, task).run();
      break;
    case Dtype::float16:
      Worker<float16>(call, task).run();
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
      fold_row(state, padded, record, record[padded], record[padded + 1]);
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
