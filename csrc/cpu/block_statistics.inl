// The kernels of block_statistics.h, compiled once per ISA: Vec, Mask, kWidth and the operations on them come
// from simd_<isa>.inl, FASTPOWER_TARGET is the ISA's target attribute. Four vectors are in flight at a time.

constexpr int kGroup = 4 * kWidth;
static_assert(kChunk % kGroup == 0, "a chunk is a whole number of groups");

// exp(y) for y <= 0, 0 below kLowest, NaN for NaN; *live tells which entries count.
FASTPOWER_TARGET static inline __attribute__((always_inline)) Vec exp_nonpositive(Vec y, Mask* live) {
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

FASTPOWER_TARGET static inline double total(const Vec* four) {
  alignas(64) float lane[kWidth];
  store(lane, add(add(four[0], four[1]), add(four[2], four[3])));
  double sum = 0;
  for (int i = 0; i < kWidth; ++i) sum += lane[i];
  return sum;
}

constexpr int kExponentsPerPass = 8;

struct Sums {
  Vec s[4], t[4], power[kExponentsPerPass][4];
};

template <class T>
FASTPOWER_TARGET static inline __attribute__((always_inline)) void accumulate(const T* z, Vec m,
                                                                              const float* exponents,
                                                                              const int* square, int count,
                                                                              Sums& sums) {
  Vec d[4], p[4];
  for (int j = 0; j < 4; ++j) {
    Mask live;
    d[j] = sub(load(z + j * kWidth), m);
    p[j] = exp_nonpositive(d[j], &live);
    sums.s[j] = add(sums.s[j], p[j]);
    sums.t[j] = fma_where(live, d[j], p[j], sums.t[j]);
  }
  for (int e = 0; e < count; ++e) {
    Vec q[4];
    if (square[e] >= 0) {
      for (int j = 0; j < 4; ++j) q[j] = p[j];
      for (int i = 0; i < square[e]; ++i)
        for (int j = 0; j < 4; ++j) q[j] = mul(q[j], q[j]);
    } else {
      Mask live;
      for (int j = 0; j < 4; ++j) q[j] = exp_nonpositive(mul(d[j], set(exponents[e])), &live);
    }
    for (int j = 0; j < 4; ++j) sums.power[e][j] = add(sums.power[e][j], q[j]);
  }
}

// The last n < kGroup entries, padded with -inf.
template <class T>
FASTPOWER_TARGET static inline void pad(const T* z, int n, float* tail) {
  for (int i = 0; i < n; ++i) tail[i] = to_float(z[i]);
  for (int i = n; i < kGroup; ++i) tail[i] = -kInf;
}

FASTPOWER_TARGET static inline float largest(const Vec* four) {
  alignas(64) float lane[kWidth];
  store(lane, max_or_keep(max_or_keep(four[0], four[1]), max_or_keep(four[2], four[3])));
  float m = lane[0];
  for (int i = 1; i < kWidth; ++i) m = lane[i] > m ? lane[i] : m;
  return m;
}

template <class T>
FASTPOWER_TARGET BlockStatistics statistics(const void* data, int n, const float* exponents, int count,
                                            double* out) {
  const T* z = static_cast<const T*>(data);
  const FlushSubnormals flush;
  const int whole = n / kGroup * kGroup;
  alignas(64) float tail[kGroup];
  Vec top[4] = {set(-kInf), set(-kInf), set(-kInf), set(-kInf)};
  for (int i = 0; i < whole; i += kGroup)
    for (int j = 0; j < 4; ++j) top[j] = max_or_keep(load(z + i + j * kWidth), top[j]);
  if (whole < n) {
    pad(z + whole, n - whole, tail);
    for (int j = 0; j < 4; ++j) top[j] = max_or_keep(load(tail + j * kWidth), top[j]);
  }
  const float m = largest(top);
  if (m == -kInf) {  // z - m would be NaN everywhere
    for (int e = 0; e < count; ++e) out[e] = 0;
    return {-kInf, any_nan(z, n) ? std::numeric_limits<double>::quiet_NaN() : 0.0, 0.0};
  }
  BlockStatistics result{m, 0, 0};
  int first = 0;
  do {  // once, unless there are more than kExponentsPerPass exponents
    const int some = count - first < kExponentsPerPass ? count - first : kExponentsPerPass;
    int square[kExponentsPerPass];
    for (int e = 0; e < some; ++e) square[e] = squarings(exponents[first + e]);
    Sums sums;
    for (int j = 0; j < 4; ++j) sums.s[j] = sums.t[j] = set(0.0f);
    for (int e = 0; e < some; ++e)
      for (int j = 0; j < 4; ++j) sums.power[e][j] = set(0.0f);
    for (int i = 0; i < whole; i += kGroup) accumulate(z + i, set(m), exponents + first, square, some, sums);
    if (whole < n) accumulate(tail, set(m), exponents + first, square, some, sums);
    result.s = total(sums.s);
    result.t = total(sums.t);
    for (int e = 0; e < some; ++e) out[first + e] = total(sums.power[e]);
    first += some;
  } while (first < count);
  return result;
}

template <class T>
FASTPOWER_TARGET void load_block(const void* data, int n, float* buffer) {
  const T* z = static_cast<const T*>(data);
  int i = 0;
  for (; i + kWidth <= n; i += kWidth) store(buffer + i, load(z + i));
  for (; i < n; ++i) buffer[i] = to_float(z[i]);
  for (; i % kChunk != 0; ++i) buffer[i] = -kInf;
}

FASTPOWER_TARGET float weigh(float* buffer, int n, float alpha, double* sums) {
  const FlushSubnormals flush;
  Vec top[4] = {set(-kInf), set(-kInf), set(-kInf), set(-kInf)};
  for (int i = 0; i < n; i += kGroup)
    for (int j = 0; j < 4; ++j) top[j] = max_or_keep(load(buffer + i + j * kWidth), top[j]);
  const float m = largest(top);
  if (m == -kInf) {
    for (int i = 0; i < n; ++i) buffer[i] = 0;
    for (int i = 0; i < n / kChunk; ++i) sums[i] = 0;
    return m;
  }
  for (int i = 0; i < n; i += kChunk) {
    Vec sum[4] = {set(0.0f), set(0.0f), set(0.0f), set(0.0f)};
    for (int k = i; k < i + kChunk; k += kGroup)
      for (int j = 0; j < 4; ++j) {
        Mask live;
        float* p = buffer + k + j * kWidth;
        const Vec w = exp_nonpositive(mul(set(alpha), sub(load(p), set(m))), &live);
        store(p, w);
        sum[j] = add(sum[j], w);
      }
    sums[i / kChunk] = total(sum);
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
