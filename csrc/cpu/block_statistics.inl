// The kernels of block_statistics.h, compiled once per ISA: Vec, Mask, kWidth and the operations on them come
// from simd_<isa>.inl, FASTPOWER_TARGET is the ISA's target attribute. Four vectors are in flight at a time,
// held in named variables: arrays of vectors end up on the stack.

#define FASTPOWER_INLINE FASTPOWER_TARGET FASTPOWER_ALWAYS_INLINE

constexpr int kGroup = 4 * kWidth;
constexpr int kSpan = 4 * kGroup;  // entries between two looks at the running maximum
static_assert(kChunk % kGroup == 0, "a chunk is a whole number of groups");

// exp(y) for y <= 0, 0 below kLowest, NaN for NaN; *live tells which entries count.
FASTPOWER_INLINE Vec exp_nonpositive(Vec y, Mask* live) {
  const Vec shifted = fma(y, set(kLog2e), set(kRound / kSteps));
  const Vec n = sub(shifted, set(kRound / kSteps));
  const Vec r = fnma(n, set(kLn2), y);
#ifdef FASTPOWER_EXP_TABLE
  const Vec power = lookup(shifted);
  const Vec p = fma(power, mul(fma(r, set(kQ[1]), set(kQ[0])), r), power);
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

// How s_e comes from p = e^d.
enum Power { kNoPower = -2, kOwnExp = -1 };  // or the number of squarings

// Sums over every kWidth-th entry, relative to the running maximum.
struct Lane {
  Vec s, t, q;
};

template <bool kBase, int kPower>
FASTPOWER_INLINE void accumulate(Vec z, Vec m, Vec exponent, Lane& sum) {
  const Vec d = sub(z, m);
  Mask live;
  Vec p = d;
  if (kBase || kPower > 0) p = exp_nonpositive(d, &live);
  if (kBase) {
    sum.s = add(sum.s, p);
    sum.t = fma_where(live, d, p, sum.t);
  }
  if (kPower > 0) {
    for (int i = 1; i < kPower; ++i) p = mul(p, p);
    sum.q = fma(p, p, sum.q);
  }
  if (kPower == kOwnExp) sum.q = add(sum.q, exp_nonpositive(mul(d, exponent), &live));
}

// The sums relative to a maximum larger by -d.
template <bool kBase, int kPower>
FASTPOWER_INLINE void rescale(Vec d, Vec exponent, Lane& sum) {
  Mask live;
  Vec p = exp_nonpositive(d, &live);
  if (kBase) {
    sum.t = mul(p, fma_where(live, d, sum.s, sum.t));
    sum.s = mul(p, sum.s);
  }
  for (int i = 0; i < kPower; ++i) p = mul(p, p);
  if (kPower == kOwnExp) p = exp_nonpositive(mul(d, exponent), &live);
  if (kPower != kNoPower) sum.q = mul(p, sum.q);
}

// Far ahead into the second-level cache, a little ahead into the first. A row is one stream: behind a block
// the next one follows, which this thread or a neighbour works on soon; behind a row nothing useful is
// fetched, and nothing is ever read.
template <class T>
FASTPOWER_INLINE void prefetch_group(const T* z) {
  constexpr uintptr_t kFar = 8192, kNear = 1024;  // bytes
  const uintptr_t here = reinterpret_cast<uintptr_t>(z);
  for (size_t byte = 0; byte < kGroup * sizeof(T); byte += 64) {
    __builtin_prefetch(reinterpret_cast<const void*>(here + kFar + byte), 0, 2);
    __builtin_prefetch(reinterpret_cast<const void*>(here + kNear + byte), 0, 3);
  }
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

template <bool kBase, int kPower>
struct Running {
  Vec exponent, m;  // m: the largest logit so far in every entry
  Lane a, b, c, d;

  // The next n logits, a multiple of kGroup.
  template <class T>
  FASTPOWER_INLINE void take(const T* z, int n) {
    Vec top0 = m, top1 = m, top2 = m, top3 = m;
    for (int k = 0; k < n; k += kGroup) {
      top0 = max_or_keep(load(z + k), top0);
      top1 = max_or_keep(load(z + k + kWidth), top1);
      top2 = max_or_keep(load(z + k + 2 * kWidth), top2);
      top3 = max_or_keep(load(z + k + 3 * kWidth), top3);
    }
    const Vec top = max_or_keep(max_or_keep(top0, top1), max_or_keep(top2, top3));
    if (__builtin_expect(any_above(top, m), 0)) raise(max_lanes(top));
    for (int k = 0; k < n; k += kGroup) {
      if (kBase) prefetch_group(z + k);
      accumulate<kBase, kPower>(load(z + k), m, exponent, a);
      accumulate<kBase, kPower>(load(z + k + kWidth), m, exponent, b);
      accumulate<kBase, kPower>(load(z + k + 2 * kWidth), m, exponent, c);
      accumulate<kBase, kPower>(load(z + k + 3 * kWidth), m, exponent, d);
    }
  }

  FASTPOWER_INLINE void raise(float top) {
    const Vec down = sub(m, set(top));
    m = set(top);
    rescale<kBase, kPower>(down, exponent, a);
    rescale<kBase, kPower>(down, exponent, b);
    rescale<kBase, kPower>(down, exponent, c);
    rescale<kBase, kPower>(down, exponent, d);
  }
};

struct Sums {
  float m;
  double s, t, q;
};

// m; s and t if kBase; s_e if kPower says how. What is computed does not change the bits of any of them.
template <class T, bool kBase, int kPower>
FASTPOWER_TARGET Sums block_sums(const T* z, int n, float exponent) {
  const Lane zero = {set(0), set(0), set(0)};
  Running<kBase, kPower> run = {set(exponent), set(kLeast), zero, zero, zero, zero};
  int i = 0;
  for (; i + kSpan <= n; i += kSpan) run.take(z + i, kSpan);
  if (i < n) {  // padded with what contributes 0
    alignas(64) float rest[kSpan];
    run.take(rest, load_padded(z + i, n - i, rest));
  }
  return {max_lanes(run.m), kBase ? sum_lanes(add(add(run.a.s, run.b.s), add(run.c.s, run.d.s))) : 0,
          kBase ? sum_lanes(add(add(run.a.t, run.b.t), add(run.c.t, run.d.t))) : 0,
          kPower != kNoPower ? sum_lanes(add(add(run.a.q, run.b.q), add(run.c.q, run.d.q))) : 0};
}

template <class T, bool kBase>
FASTPOWER_TARGET Sums block_sums(const T* z, int n, float exponent) {
  if (exponent == 2) return block_sums<T, kBase, 1>(z, n, exponent);
  if (exponent == 4) return block_sums<T, kBase, 2>(z, n, exponent);
  if (exponent == 8) return block_sums<T, kBase, 3>(z, n, exponent);
  if (exponent == 16) return block_sums<T, kBase, 4>(z, n, exponent);
  return block_sums<T, kBase, kOwnExp>(z, n, exponent);
}

template <class T>
FASTPOWER_TARGET float largest(const T* z, int n) {
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
                                            double* out) {
  const T* z = static_cast<const T*>(data);
  int first = 0;  // computed together with s and t
  while (first < count && exponents[first] == 1) ++first;
  const Sums sums =
      first < count ? block_sums<T, true>(z, n, exponents[first]) : block_sums<T, true, kNoPower>(z, n, 1);
  for (int e = 0; e < count; ++e)
    out[e] = exponents[e] == 1 ? sums.s : e == first ? sums.q : block_sums<T, false>(z, n, exponents[e]).q;
  return {sums.s == 0 ? -kInf : sums.m, sums.s, sums.t};
}

template <class T>
FASTPOWER_TARGET void load_block(const void* data, int n, float* buffer) {
  for (int i = load_padded(static_cast<const T*>(data), n, buffer); i % kChunk != 0; i += kWidth)
    store(buffer + i, set(-kInf));
}

FASTPOWER_TARGET inline float largest(const float* buffer, int n) {
  Vec a = set(-kInf), b = a;
  for (int i = 0; i < n; i += 2 * kWidth) {
    a = max_or_keep(load(buffer + i), a);
    b = max_or_keep(load(buffer + i + kWidth), b);
  }
  return max_lanes(max_or_keep(a, b));
}

template <class T>
FASTPOWER_INLINE Vec weigh_some(const T* z, int n, Vec m, Vec alpha, float* weight) {
  Mask live;
  const Vec w =
      exp_nonpositive(mul(alpha, sub(n < kWidth ? load_some(z, n > 0 ? n : 0) : load(z), m)), &live);
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

inline const BlockKernels& kernels(Dtype dtype) {
  static const BlockKernels table[] = {
      {statistics<float>, load_block<float>, largest, weigh<float>},
      {statistics<bfloat16>, load_block<bfloat16>, largest, weigh<bfloat16>},
      {statistics<float16>, load_block<float16>, largest, weigh<float16>},
  };
  return table[static_cast<int>(dtype)];
}

#undef FASTPOWER_INLINE
