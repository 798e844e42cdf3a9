// The kernels of block_statistics.h, compiled once per ISA: Vec, Mask, kWidth and the operations on them come
// from simd_<isa>.inl, FASTPOWER_TARGET is the ISA's target attribute. Four vectors are in flight at a time,
// held in named variables: arrays of vectors end up on the stack.

#define FASTPOWER_INLINE FASTPOWER_TARGET FASTPOWER_ALWAYS_INLINE

constexpr int kGroup = 4 * kWidth;
constexpr int kSpan = 4 * kGroup;  // entries between two looks at the largest logit
static_assert(kQuarter % kSpan == 0, "a quarter is a whole number of spans");
static_assert(kChunk % kGroup == 0, "a chunk is a whole number of groups");

// Where exp overflows to inf, no look is needed but a first one: a sum that is too large tells that a logit
// was far above the reference. kLimit is just above what a quarter of logits at the reference gives, and far
// enough from float32's limit for sixteenth powers.
#ifdef FASTPOWER_EXP_TABLE
constexpr bool kHopeful = true;
#else
constexpr bool kHopeful = false;
#endif
constexpr float kLimit = kQuarter / kWidth + 1;

// exp(y), 0 below kLowest, NaN for NaN; *live tells which entries count. Where the ISA has no kHopeful, y <=
// 0 and kMasked are required. Without kMasked a y so low that the range reduction overflows (below -1e25) may
// give inf or NaN, and y exp(y) is NaN for -inf.
template <bool kMasked>
FASTPOWER_INLINE Vec exponential(Vec y, Mask* live) {
  const Vec shifted = fma(y, set(kLog2e), set(kRound / kSteps));
  const Vec n = sub(shifted, set(kRound / kSteps));
  const Vec r = fnma(n, set(kLn2), y);
#ifdef FASTPOWER_EXP_TABLE
  const Vec power = lookup(shifted);
  const Vec p = fma(power, mul(fma(r, set(kQ[1]), set(kQ[0])), r), power);
  if (!kMasked) return scale(p, n);
#else
  Vec p = fma(set(kP[6]), r, set(kP[5]));
  p = fma(p, r, set(kP[4]));
  p = fma(p, r, set(kP[3]));
  p = fma(p, r, set(kP[2]));
  p = fma(p, r, set(kP[1]));
  p = fma(p, r, set(kP[0]));
#endif
  *live = counts(y);
  return scale(p, n, shifted, *live);
}

// Sums over every kWidth-th entry, relative to the reference: s = sum e^d, t = sum d e^d, and q = sum
// (e^d)^(2^kSquarings), nothing for kSquarings = 0.
struct Lane {
  Vec s, t, q;
};

FASTPOWER_INLINE Lane plus(const Lane& a, const Lane& b) {
  return {add(a.s, b.s), add(a.t, b.t), add(a.q, b.q)};
}

template <int kSquarings, bool kMasked>
FASTPOWER_INLINE void accumulate(Vec z, Vec m, Lane& sum) {
  const Vec d = sub(z, m);
  Mask live;
  Vec p = exponential<kMasked>(d, &live);
  sum.s = add(sum.s, p);
  sum.t = kMasked ? fma_where(live, d, p, sum.t) : fma(d, p, sum.t);
  if (kSquarings == 0) return;
  for (int i = 1; i < kSquarings; ++i) p = mul(p, p);
  sum.q = fma(p, p, sum.q);
}

// The sums relative to a reference larger by -d.
template <int kSquarings>
FASTPOWER_INLINE void rescale(Vec d, Lane& sum) {
  Mask live;
  Vec p = exponential<true>(d, &live);
  sum.t = mul(p, fma_where(live, d, sum.s, sum.t));
  sum.s = mul(p, sum.s);
  for (int i = 0; i < kSquarings; ++i) p = mul(p, p);
  if (kSquarings > 0) sum.q = mul(p, sum.q);
}

// Vector j of a group is due: its line far ahead into the second-level cache, a little ahead into the first.
// Line by line, not a group's at a time, which would keep the vectors behind them waiting for fill buffers;
// the barrier keeps the compiler from gathering them. A row is one stream: behind a block the next one
// follows, which this thread or a neighbour works on soon; behind a row nothing useful is fetched, and
// nothing is ever read.
template <class T>
FASTPOWER_INLINE void prefetch_line(const T* z, int j) {
  constexpr uintptr_t kFar = 8192, kNear = 1024, kLine = 64;  // bytes
  if (j * kWidth * sizeof(T) % kLine != 0) return;
  const uintptr_t here = reinterpret_cast<uintptr_t>(z + j * kWidth);
  __builtin_prefetch(reinterpret_cast<const void*>(here + kFar), 0, 2);
  __builtin_prefetch(reinterpret_cast<const void*>(here + kNear), 0, 3);
  asm volatile("" ::: "memory");
}

// z[0..n) and -inf after them, up to a multiple of kGroup, which is returned.
template <class T>
FASTPOWER_TARGET int load_padded(const T* z, int n, float* buffer) {
  int i = 0;
  for (; i + kWidth <= n; i += kWidth) store(buffer + i, load(z + i));
  if (i < n) {
    store(buffer + i, load_some(z + i, n - i));
    i += kWidth;
  }
  for (; i % kGroup != 0; i += kWidth) store(buffer + i, set(-kInf));
  return i;
}

template <int kSquarings, bool kMasked>
struct Running {
  Vec m;                   // the reference in every entry
  Lane total, a, b, c, d;  // of the quarters so far; of this one

  // The next n <= kQuarter logits, n a multiple of kGroup. False if a sum is NaN or inf even so.
  template <class T>
  FASTPOWER_INLINE bool take_quarter(const T* z, int n, bool first) {
    clear();
    if (kHopeful && first) m = set(max_lanes(top(z, n < kSpan ? n : kSpan)));
    for (int k = 0; k < n; k += kSpan) {
      const int span = n - k < kSpan ? n - k : kSpan;
      if (!kHopeful) look(z + k, span);
      sweep(z + k, span);
    }
    if (kHopeful && __builtin_expect(!fine(), 0)) {
      clear();
      look(z, n);
      sweep(z, n);
      if (!fine()) return false;
    }
    total = plus(total, quarter());
    return true;
  }

  FASTPOWER_INLINE Lane quarter() const { return plus(plus(a, b), plus(c, d)); }

  FASTPOWER_INLINE bool fine() const {
    const Lane sum = quarter();
    return all_below(sum.s, set(kLimit)) && all_below(sum.t, set(kInf));
  }

  FASTPOWER_INLINE void clear() { a = b = c = d = {set(0), set(0), set(0)}; }

  template <class T>
  FASTPOWER_INLINE void sweep(const T* z, int n) {
    for (int k = 0; k < n; k += kGroup) {
      take_vector(z + k, 0, a);
      take_vector(z + k, 1, b);
      take_vector(z + k, 2, c);
      take_vector(z + k, 3, d);
    }
  }

  // Vector j of the group at z.
  template <class T>
  FASTPOWER_INLINE void take_vector(const T* z, int j, Lane& sum) {
    prefetch_line(z, j);
    accumulate<kSquarings, kMasked>(load(z + j * kWidth), m, sum);
  }

  // The largest of m and these n logits, a multiple of kGroup.
  template <class T>
  FASTPOWER_INLINE Vec top(const T* z, int n) const {
    Vec top0 = m, top1 = m, top2 = m, top3 = m;
    for (int k = 0; k < n; k += kGroup) {
      top0 = max_or_keep(load(z + k), top0);
      top1 = max_or_keep(load(z + k + kWidth), top1);
      top2 = max_or_keep(load(z + k + 2 * kWidth), top2);
      top3 = max_or_keep(load(z + k + 3 * kWidth), top3);
    }
    return max_or_keep(max_or_keep(top0, top1), max_or_keep(top2, top3));
  }

  // Raises the reference to the largest of these n logits, if that is larger.
  template <class T>
  FASTPOWER_INLINE void look(const T* z, int n) {
    const Vec highest = top(z, n);
    if (__builtin_expect(!any_above(highest, m), 1)) return;
    const Vec raised = set(max_lanes(highest)), down = sub(m, raised);
    m = raised;
    rescale<kSquarings>(down, total);
    if (kHopeful) return;  // nothing in the others
    rescale<kSquarings>(down, a);
    rescale<kSquarings>(down, b);
    rescale<kSquarings>(down, c);
    rescale<kSquarings>(down, d);
  }
};

struct Sums {
  float m;
  double s, t, q;
};

// m, s, t and the s_e of e = 2^kSquarings; quarters, if given, receive s_e, or s if `plain`. s is NaN if
// there is a NaN or +inf or, without kMasked, a masked entry. kSquarings does not change the bits of m, s and
// t.
template <class T, int kSquarings, bool kMasked>
FASTPOWER_TARGET Sums block_sums_as(const T* z, int n, bool plain, Quarter* quarters) {
  const Lane zero = {set(0), set(0), set(0)};
  Running<kSquarings, kMasked> run = {set(kLeast), zero, zero, zero, zero, zero};
  for (int i = 0; i < n; i += kQuarter) {
    const int here = n - i < kQuarter ? n - i : kQuarter;
    bool fine;
    if (here % kGroup == 0) {
      fine = run.take_quarter(z + i, here, i == 0);
    } else {  // padded with what contributes 0
      alignas(64) float rest[kQuarter];
      fine = run.take_quarter(rest, load_padded(z + i, here, rest), i == 0);
    }
    if (!fine) return {0, kNaN, 0, 0};
    if (!quarters) continue;
    const Lane quarter = run.quarter();
    quarters[i / kQuarter] = {max_lanes(run.m), sum_lanes(plain ? quarter.s : quarter.q)};
  }
  return {max_lanes(run.m), sum_lanes(run.total.s), sum_lanes(run.total.t), sum_lanes(run.total.q)};
}

// Masked entries are rare and show in the sums: only then a second pass, with masks, from the start. Both
// give the same bits where nothing is masked.
template <class T, int kSquarings>
FASTPOWER_TARGET Sums block_sums_of(const T* z, int n, bool plain, Quarter* quarters) {
  if (kHopeful && n % kGroup == 0) {  // else padded with -inf
    const Sums sums = block_sums_as<T, kSquarings, !kHopeful>(z, n, plain, quarters);
    if (!std::isnan(sums.s)) return sums;
  }
  return block_sums_as<T, kSquarings, true>(z, n, plain, quarters);
}

template <class T>
FASTPOWER_TARGET Sums block_sums(const T* z, int n, int squarings, bool plain, Quarter* quarters) {
  switch (squarings) {
    case 1:
      return block_sums_of<T, 1>(z, n, plain, quarters);
    case 2:
      return block_sums_of<T, 2>(z, n, plain, quarters);
    case 3:
      return block_sums_of<T, 3>(z, n, plain, quarters);
    case 4:
      return block_sums_of<T, 4>(z, n, plain, quarters);
  }
  return block_sums_of<T, 0>(z, n, plain, quarters);
}

// s_e of an exponent with an exponential of its own, relative to top, the largest of the logits.
template <class T>
FASTPOWER_TARGET double exponential_sum(const T* z, int n, float top, float exponent, Quarter* quarters) {
  const Vec m = set(top), e = set(exponent);
  Mask live;
  double total = 0;
  for (int start = 0; start < n; start += kQuarter) {
    const int end = n - start < kQuarter ? n : start + kQuarter;
    Vec a = set(0), b = a;
    int i = start;
    for (; i + 2 * kWidth <= end; i += 2 * kWidth) {
      a = add(a, exponential<true>(mul(e, sub(load(z + i), m)), &live));
      b = add(b, exponential<true>(mul(e, sub(load(z + i + kWidth), m)), &live));
    }
    for (; i < end; i += kWidth)
      a = add(a, exponential<true>(mul(e, sub(load_some(z + i, end - i), m)), &live));
    const double sum = sum_lanes(add(a, b));
    if (quarters) quarters[start / kQuarter] = {top, sum};
    total += sum;
  }
  return total;
}

template <class T>
FASTPOWER_TARGET float largest(const void* data, int n) {
  const T* z = static_cast<const T*>(data);
  Vec a = set(-kInf), b = a, c = a, d = a;
  int i = 0;
  for (; i + kGroup <= n; i += kGroup) {
    a = max_or_keep(load(z + i), a);
    b = max_or_keep(load(z + i + kWidth), b);
    c = max_or_keep(load(z + i + 2 * kWidth), c);
    d = max_or_keep(load(z + i + 3 * kWidth), d);
  }
  for (; i < n; i += kWidth) a = max_or_keep(load_some(z + i, n - i), a);
  return max_lanes(max_or_keep(max_or_keep(a, b), max_or_keep(c, d)));
}

template <class T>
FASTPOWER_TARGET BlockStatistics statistics(const void* data, int n, const float* exponents, int count,
                                            double* out, int drawn, Quarter* quarters) {
  const T* z = static_cast<const T*>(data);
  const auto of = [&](int e) { return e == drawn ? quarters : nullptr; };
  // One power is computed together with s and t: the drawn one's if it can be.
  int first = drawn >= 0 && squarings(exponents[drawn]) > 0 ? drawn : 0;
  while (first < count && squarings(exponents[first]) <= 0) ++first;
  const bool plain = drawn >= 0 && exponents[drawn] == 1;
  const Sums sums =
      block_sums(z, n, first < count ? squarings(exponents[first]) : 0, plain, plain ? quarters : of(first));
  float top = -kInf;
  for (int e = 0; e < count; ++e) {
    if (exponents[e] == 1) {
      out[e] = sums.s;
    } else if (e == first) {
      out[e] = sums.q;
    } else if (squarings(exponents[e]) > 0) {
      out[e] = block_sums(z, n, squarings(exponents[e]), false, nullptr).q;
    } else {
      if (top == -kInf) top = largest<T>(z, n);
      out[e] = sums.s == 0 ? 0 : exponential_sum(z, n, top, exponents[e], of(e));
    }
  }
  return {sums.s == 0 ? -kInf : sums.m, sums.s, sums.t, top};
}

template <class T>
FASTPOWER_TARGET void load_block(const void* data, int n, float* buffer) {
  for (int i = load_padded(static_cast<const T*>(data), n, buffer); i % kChunk != 0; i += kWidth)
    store(buffer + i, set(-kInf));
}

template <class T>
FASTPOWER_INLINE Vec weigh_some(const T* z, int n, Vec m, Vec alpha, float* weight) {
  Mask live;
  const Vec w =
      exponential<true>(mul(alpha, sub(n < kWidth ? load_some(z, n > 0 ? n : 0) : load(z), m)), &live);
  store(weight, w);
  return w;
}

template <class T>
FASTPOWER_TARGET void weigh(const void* data, int n, float m, float alpha, float* weight, double* sums) {
  const T* z = static_cast<const T*>(data);
  const Vec m_all = set(m), alpha_all = set(alpha);
  for (int i = 0; i < n; i += kChunk) {
    Vec a = set(0), b = a, c = a, d = a;
    for (int k = i; k < i + kChunk; k += kGroup) {
      a = add(a, weigh_some(z + k, n - k, m_all, alpha_all, weight + k));
      b = add(b, weigh_some(z + k + kWidth, n - k - kWidth, m_all, alpha_all, weight + k + kWidth));
      c = add(c,
              weigh_some(z + k + 2 * kWidth, n - k - 2 * kWidth, m_all, alpha_all, weight + k + 2 * kWidth));
      d = add(d,
              weigh_some(z + k + 3 * kWidth, n - k - 3 * kWidth, m_all, alpha_all, weight + k + 3 * kWidth));
    }
    sums[i / kChunk] = sum_lanes(add(add(a, b), add(c, d)));
  }
}

// A pair of vectors of every row at a time: its sums stay in registers, and out is written once.
template <class T>
FASTPOWER_TARGET void pool(const void* const* rows, const float* m, const float* l, int count, int n,
                           float* out) {
  int i = 0;
  for (; i + 2 * kWidth <= n; i += 2 * kWidth) {
    Vec a = set(0), b = a;
    for (int k = 0; k < count; ++k) {
      const T* z = static_cast<const T*>(rows[k]) + i;
      const Vec top = set(m[k]), rest = set(l[k]);
      a = add(a, sub(sub(load(z), top), rest));
      b = add(b, sub(sub(load(z + kWidth), top), rest));
    }
    store(out + i, a);
    store(out + i + kWidth, b);
  }
  for (; i < n; i += kWidth) {
    const int left = n - i < kWidth ? n - i : kWidth;
    Vec a = set(0);
    for (int k = 0; k < count; ++k)
      a = add(a, sub(sub(load_some(static_cast<const T*>(rows[k]) + i, left), set(m[k])), set(l[k])));
    alignas(64) float last[kWidth];
    store(last, a);
    std::memcpy(out + i, last, left * sizeof(float));
  }
}

inline const BlockKernels& kernels(Dtype dtype) {
  static const BlockKernels table[] = {
      {statistics<float>, load_block<float>, largest<float>, weigh<float>, pool<float>},
      {statistics<bfloat16>, load_block<bfloat16>, largest<bfloat16>, weigh<bfloat16>, pool<bfloat16>},
      {statistics<float16>, load_block<float16>, largest<float16>, weigh<float16>, pool<float16>},
  };
  return table[static_cast<int>(dtype)];
}

#undef FASTPOWER_INLINE
