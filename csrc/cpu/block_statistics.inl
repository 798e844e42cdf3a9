// The kernels of block_statistics.h, compiled once per ISA: Vec, Mask, kWidth and the operations on them come
// from simd_<isa>.inl, FASTPOWER_TARGET is the ISA's target attribute. Four vectors are in flight at a time,
// held in named variables: arrays of vectors end up on the stack.

#define FASTPOWER_INLINE FASTPOWER_TARGET FASTPOWER_ALWAYS_INLINE

constexpr int kGroup = 4 * kWidth;
static_assert(kChunk % kGroup == 0, "a chunk is a whole number of groups");

// exp(y) for y <= 0, 0 below kLowest, NaN for NaN; *live tells which entries count.
FASTPOWER_INLINE Vec exp_nonpositive(Vec y, Mask* live) {
  const Vec shifted = fma(y, set(kLog2e), set(kRound));
  const Vec n = sub(shifted, set(kRound));
  const Vec r = fnma(n, set(kLn2), y);
  Vec p = fma(set(kP[6]), r, set(kP[5]));
  p = fma(p, r, set(kP[4]));
  p = fma(p, r, set(kP[3]));
  p = fma(p, r, set(kP[2]));
  p = fma(p, r, set(kP[1]));
  p = fma(p, r, set(kP[0]));
  *live = counts(y);
  return scale(p, n, shifted, *live);
}

// How s_e comes from p = e^d.
enum Power { kNoPower = -2, kOwnExp = -1 };  // or the number of squarings

template <int kPower>
FASTPOWER_INLINE Vec power(Vec p, Vec d, Vec exponent) {
  if (kPower == kOwnExp) {
    Mask live;
    return exp_nonpositive(mul(d, exponent), &live);
  }
  for (int i = 0; i < kPower; ++i) p = mul(p, p);
  return p;
}

template <bool kBase, int kPower>
FASTPOWER_INLINE void accumulate(Vec z, Vec m, Vec exponent, Vec& s, Vec& t, Vec& q) {
  const Vec d = sub(z, m);
  Vec p = d;
  if (kBase || kPower != kOwnExp) {
    Mask live;
    p = exp_nonpositive(d, &live);
    if (kBase) {
      s = add(s, p);
      t = fma_where(live, d, p, t);
    }
  }
  if (kPower != kNoPower) q = add(q, power<kPower>(p, d, exponent));
}

// The same group of the next block: it comes from memory while this block, already in the cache, is computed.
// Behind the last block of a row nothing useful is fetched, and nothing is ever read.
template <class T>
FASTPOWER_INLINE void prefetch_group(const T* z) {
  const uintptr_t next = reinterpret_cast<uintptr_t>(z) + kBlock * sizeof(T);
  for (size_t byte = 0; byte < kGroup * sizeof(T); byte += 64)
    __builtin_prefetch(reinterpret_cast<const void*>(next + byte), 0, 2);
}

struct Sums {
  double s, t, q;
};

// s and t if kBase, s_e if kPower says how. What is computed does not change the bits of any of them.
template <class T, bool kBase, int kPower>
FASTPOWER_TARGET Sums block_sums(const T* z, int n, float m, float exponent) {
  const Vec m_all = set(m), e_all = set(exponent);
  Vec s0 = set(0), s1 = s0, s2 = s0, s3 = s0, t0 = s0, t1 = s0, t2 = s0, t3 = s0, q0 = s0, q1 = s0, q2 = s0,
      q3 = s0;
  int i = 0;
  for (; i + kGroup <= n; i += kGroup) {
    if (kBase) prefetch_group<T>(z + i);
    accumulate<kBase, kPower>(load(z + i), m_all, e_all, s0, t0, q0);
    accumulate<kBase, kPower>(load(z + i + kWidth), m_all, e_all, s1, t1, q1);
    accumulate<kBase, kPower>(load(z + i + 2 * kWidth), m_all, e_all, s2, t2, q2);
    accumulate<kBase, kPower>(load(z + i + 3 * kWidth), m_all, e_all, s3, t3, q3);
  }
  if (i < n) accumulate<kBase, kPower>(load_some(z + i, n - i), m_all, e_all, s0, t0, q0);
  if ((i += kWidth) < n) accumulate<kBase, kPower>(load_some(z + i, n - i), m_all, e_all, s1, t1, q1);
  if ((i += kWidth) < n) accumulate<kBase, kPower>(load_some(z + i, n - i), m_all, e_all, s2, t2, q2);
  if ((i += kWidth) < n) accumulate<kBase, kPower>(load_some(z + i, n - i), m_all, e_all, s3, t3, q3);
  return {kBase ? sum_lanes(add(add(s0, s1), add(s2, s3))) : 0,
          kBase ? sum_lanes(add(add(t0, t1), add(t2, t3))) : 0,
          kPower != kNoPower ? sum_lanes(add(add(q0, q1), add(q2, q3))) : 0};
}

template <class T, bool kBase>
FASTPOWER_TARGET Sums block_sums(const T* z, int n, float m, float exponent) {
  if (exponent == 2) return block_sums<T, kBase, 1>(z, n, m, exponent);
  if (exponent == 4) return block_sums<T, kBase, 2>(z, n, m, exponent);
  if (exponent == 8) return block_sums<T, kBase, 3>(z, n, m, exponent);
  if (exponent == 16) return block_sums<T, kBase, 4>(z, n, m, exponent);
  return block_sums<T, kBase, kOwnExp>(z, n, m, exponent);
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
  const FlushSubnormals flush;
  const float m = largest(z, n);
  if (m == -kInf) {  // z - m would be NaN everywhere
    for (int e = 0; e < count; ++e) out[e] = 0;
    return {-kInf, any_nan(z, n) ? std::numeric_limits<double>::quiet_NaN() : 0.0, 0.0};
  }
  int first = 0;  // computed together with s and t
  while (first < count && exponents[first] == 1) ++first;
  const Sums sums = first < count ? block_sums<T, true>(z, n, m, exponents[first])
                                  : block_sums<T, true, kNoPower>(z, n, m, 1);
  for (int e = 0; e < count; ++e)
    out[e] = exponents[e] == 1 ? sums.s : e == first ? sums.q : block_sums<T, false>(z, n, m, exponents[e]).q;
  return {m, sums.s, sums.t};
}

template <class T>
FASTPOWER_TARGET void load_block(const void* data, int n, float* buffer) {
  const T* z = static_cast<const T*>(data);
  int i = 0;
  for (; i + kWidth <= n; i += kWidth) store(buffer + i, load(z + i));
  if (i < n) {
    store(buffer + i, load_some(z + i, n - i));
    i += kWidth;
  }
  for (; i % kChunk != 0; i += kWidth) store(buffer + i, set(-kInf));
}

FASTPOWER_INLINE Vec weigh_some(float* z, Vec m, Vec alpha) {
  Mask live;
  const Vec w = exp_nonpositive(mul(alpha, sub(load(z), m)), &live);
  store(z, w);
  return w;
}

FASTPOWER_TARGET inline float weigh(float* buffer, int n, float alpha, double* sums) {
  const FlushSubnormals flush;
  const float m = largest(buffer, n);
  if (m == -kInf) {
    for (int i = 0; i < n; i += kWidth) store(buffer + i, set(0));
    for (int i = 0; i < n / kChunk; ++i) sums[i] = 0;
    return m;
  }
  const Vec m_all = set(m), alpha_all = set(alpha);
  for (int i = 0; i < n; i += kChunk) {
    Vec a = set(0), b = a, c = a, d = a;
    for (int k = i; k < i + kChunk; k += kGroup) {
      a = add(a, weigh_some(buffer + k, m_all, alpha_all));
      b = add(b, weigh_some(buffer + k + kWidth, m_all, alpha_all));
      c = add(c, weigh_some(buffer + k + 2 * kWidth, m_all, alpha_all));
      d = add(d, weigh_some(buffer + k + 3 * kWidth, m_all, alpha_all));
    }
    sums[i / kChunk] = sum_lanes(add(add(a, b), add(c, d)));
  }
  return m;
}

inline const BlockKernels& kernels(Dtype dtype) {
  static const BlockKernels table[] = {
      {statistics<float>, load_block<float>, weigh},
      {statistics<bfloat16>, load_block<bfloat16>, weigh},
      {statistics<float16>, load_block<float16>, weigh},
  };
  return table[static_cast<int>(dtype)];
}

#undef FASTPOWER_INLINE
