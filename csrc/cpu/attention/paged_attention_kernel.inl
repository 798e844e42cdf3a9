// The attention of one task: see attention_steps.inl for what is done with a split.
//
// Included once per instruction set, inside that set's namespace and target region, so that every function
// here is compiled for it. Templates of the standard library are avoided: a copy compiled here could be the
// one that the linker keeps for the whole extension, and then run on an older machine.

constexpr int kMostRows = 8;  // that are worked on together, by vectors or by tiles
static_assert(Simd::kRows <= kMostRows);

// Working memory of one task.
struct Scratch {
  float* queries;  // (rows, D), scaled
  float* keys;     // (D, kSplit): transposed
  float* values;   // (kSplit, padded D)
  float* p;        // (kMostRows, kSplit): scores, then weights
  float* a;        // (kMostRows, padded D): one split's weighted sum
  float* state;    // (rows, record_size)
  float* tiles;    // as many floats as they ask for

  void reserve(int64_t rows, int64_t dim, int64_t record_size, int64_t tile_floats) {
    const int64_t padded = padded_dim(dim);
    const int64_t sizes[] = {rows * dim,         dim * kSplit,       kSplit * padded, kMostRows * kSplit,
                             kMostRows * padded, rows * record_size, tile_floats};
    int64_t total = 0;
    for (int64_t size : sizes) total += (size + 15) / 16 * 16;
    float* next = attention_scratch(total);
    float** parts[] = {&queries, &keys, &values, &p, &a, &state, &tiles};
    for (int i = 0; i < 7; ++i) {
      *parts[i] = next;
      next += (sizes[i] + 15) / 16 * 16;
    }
  }
};

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
    const int64_t all_rows = rows_ * (task.head_end - task.head_begin);
    tiled_ = Tiles<T>::fit(dim_);
    s_.reserve(all_rows, dim_, call.record_size, tiled_ ? Tiles<T>::floats(all_rows, dim_) : 0);
    direct_ = dim_ == padded_ && dim_ % (2 * W) == 0 && rows_ <= kDirectRows;
    for (int i = 0; i < kSplit; ++i) value_rows_[i] = s_.values + i * padded_;
    // Half of the lines are asked for while keys are packed, half while rows are multiplied.
    const int64_t lines = 2 * kSplit * (dim_ * sizeof(T) + 63) / 64;
    lines_per_block_ = (lines / 2 * W * Simd::block<T>() + kSplit * dim_ - 1) / (kSplit * dim_);
    lines_per_step_ = (lines / 2 + dim_ + kSplit - 1) / (dim_ + kSplit);
  }

  void run() {
    const bool keep = task_.whole || task_.first;
    if constexpr (Tiles<T>::kHave)
      if (tiled_) tiles_.begin(rows_ * (task_.head_end - task_.head_begin), dim_, s_.tiles);
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
        visit(split, h, now);
      }
      if (split + 1 == task_.end) ahead_.ask(kSplit * kSplit);  // a short last split asks for few by itself
    }
    for (int64_t h = task_.head_begin; keep && h < task_.head_end; ++h)
      for (int64_t r = 0; r < rows_; ++r) finish(h, r);
    if constexpr (Tiles<T>::kHave)
      if (tiled_) tiles_.end();
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
  int64_t query_row(int64_t h, int64_t row) const { return (h - task_.head_begin) * rows_ + row; }
  float* queries(int64_t h, int64_t row) const { return s_.queries + query_row(h, row) * dim_; }
  float query_scale() const { return a_.softcap > 0 ? a_.scale / a_.softcap : a_.scale * kLog2e; }

  void load_queries(int64_t h) {
    const float scale = query_scale();
    for (int64_t r = 0; r < rows_; ++r) {
      const T* q = static_cast<const T*>(a_.query) + token(r) * a_.query_token_stride +
                   head(h, r) * a_.query_head_stride;
      for (int d = 0; d < dim_; d += W)
        Simd::store(queries(h, r) + d, Simd::mul(Simd::load(q + d, dim_ - d), Simd::set(scale)), dim_ - d);
      if constexpr (Tiles<T>::kHave)
        if (tiled_) tiles_.load_query(query_row(h, r), q);
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

  bool even() const { return a_.page_size % W == 0; }

  // One split for all rows of a head.
  void visit(int64_t split, int64_t h, const Split& now) {
    bool packed = false;
    const auto by_vectors = [&](int64_t row, int64_t end) {
      if (!packed) pack(now);
      packed = true;
      if (direct_)
        blocks(split, h, row, end, now.v, now.offset);
      else
        blocks(split, h, row, end, value_rows_, 0);
    };
    if constexpr (Tiles<T>::kHave)
      if (tiled_) {
        bool loaded = false;
        for (int64_t t = 0, end; t < task_.tokens; t = end) {
          const bool whole = sees_all(t, split);
          for (end = t + 1; end < task_.tokens && sees_all(end, split) == whole;) ++end;
          if (!whole) {
            by_vectors(t * group_, end * group_);
            continue;
          }
          if (!loaded) {
            tiles_.load_keys(now.k, now.offset, even(), token_stride_);
            tiles_.load_values(now.v, now.offset, &ahead_);
          }
          loaded = true;
          tile_rows(split, h, t * group_, end * group_);
        }
        return;
      }
    by_vectors(0, rows_);
  }

  bool sees_all(int64_t token, int64_t split) const {
    const int64_t own = call_.position[task_.token + token] - split * kSplit;
    if (own < kSplit - 1 || (a_.window > 0 && own >= a_.window)) return false;
    return !hidden_keys(task_.token + token, split, kSplit);
  }

  void pack(const Split& now) {
    pack_keys(now.k, now.offset, even(), token_stride_, now.count, dim_, s_.keys, &ahead_, lines_per_block_);
    if (!direct_) pack_values(now.v, now.offset, now.count, dim_, padded_, s_.values);
  }

  template <class V>
  void blocks(int64_t split, int64_t h, int64_t r, int64_t end, const V* const* values, int64_t offset) {
    for (; r + Simd::kRows <= end; r += Simd::kRows) block<Simd::kRows>(split, h, r, values, offset);
    rest<Simd::kRows - 1>(split, h, r, end, values, offset);
  }

  template <int R, class V>
  void rest(int64_t split, int64_t h, int64_t r, int64_t end, const V* const* values, int64_t offset) {
    if constexpr (R > 0) {
      if (end - r == R)
        block<R>(split, h, r, values, offset);
      else
        rest<R - 1>(split, h, r, end, values, offset);
    }
  }

  // The rows [row, end), which see all of a split: scores for a tile of them at a time, the rest for half a
  // tile.
  void tile_rows(int64_t split, int64_t h, int64_t row, int64_t end) {
    constexpr int kRows = Tiles<T>::kRows;
    for (int first = 0; row < end; row += kRows, first = kRows - first) {
      if (first == 0) tiles_.multiply(query_row(h, row), &ahead_);
      tile_block<kRows>(static_cast<int>(smaller(kRows, end - row)), split, h, row, first);
    }
  }

  // One split for `rows` <= R rows, from the `first`th of a tile on.
  template <int R>
  void tile_block(int rows, int64_t split, int64_t h, int64_t row, int first) {
    if constexpr (R > 1)
      if (rows < R) return tile_block<R - 1>(rows, split, h, row, first);
    int begin[R], end[R];
    uint64_t hidden[R];
    for (int r = 0; r < R; ++r) begin[r] = 0, end[r] = kSplit, hidden[r] = 0;
    float m[R], l[R];
    tiles_.template score<R>(first, query_scale(), s_.p);
    weigh<R>(s_.p, begin, end, hidden, kSplit, cap_, m, l);
    tiles_.template sum<R>(s_.p, s_.a, &ahead_);
    keep<R>(split, h, row, m, l);
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
    keep<R>(split, h, row, m, l);
  }

  // What a split gave R rows: folded into their states, or left as records for the end.
  template <int R>
  void keep(int64_t split, int64_t h, int64_t row, const float* m, const float* l) {
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
  bool tiled_;
  Tiles<T> tiles_;
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
  // Many heads at a time: most of this is waiting for records that another core has written.
  for (int64_t first = 0; first < a.q_heads; first += W) {
    const int n = static_cast<int>(smaller(W, a.q_heads - first));
    float* states[W];
    float m[W], l[W];
    for (int r = 0; r < n; ++r) states[r] = call.record(token, 0, first + r);
    for (int64_t i = 1; i < records; ++i) {
      const float* record = call.record(token, i, first);
      for (int r = 0; r < n; ++r) {
        m[r] = record[r * call.record_size + padded];
        l[r] = record[r * call.record_size + padded + 1];
      }
      fold_rows(n, states, padded, record, call.record_size, m, l);
    }
    for (int r = 0; r < n; ++r)
      write_row(states[r], a.head_dim, padded,
                static_cast<T*>(a.out) + (token * a.q_heads + first + r) * a.head_dim);
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
