// Eight floats in plain C++, for machines without AVX2. The same names are defined by every simd_*.inl; see
// block_statistics.inl for their use.

struct Vec {
  float v[8];
};
struct Mask {
  bool v[8];
};
constexpr int kWidth = 8;
constexpr int kSteps = 1;

template <class T>
inline Vec load(const T* p) {
  Vec r;
  for (int i = 0; i < kWidth; ++i) r.v[i] = to_float(p[i]);
  return r;
}
// The first min(n, kWidth) entries, -inf after them; reads nothing beyond.
template <class T>
inline Vec load_some(const T* p, int n) {
  Vec r;
  for (int i = 0; i < kWidth; ++i) r.v[i] = i < n ? to_float(p[i]) : -kInf;
  return r;
}
inline void store(float* p, const Vec& a) { std::memcpy(p, a.v, sizeof(a.v)); }
inline Vec set(float x) {
  Vec r;
  for (float& e : r.v) e = x;
  return r;
}
inline Vec add(Vec a, const Vec& b) {
  for (int i = 0; i < kWidth; ++i) a.v[i] += b.v[i];
  return a;
}
inline Vec sub(Vec a, const Vec& b) {
  for (int i = 0; i < kWidth; ++i) a.v[i] -= b.v[i];
  return a;
}
inline Vec mul(Vec a, const Vec& b) {
  for (int i = 0; i < kWidth; ++i) a.v[i] *= b.v[i];
  return a;
}
// Two roundings: a fused one in software would cost a library call per element.
inline Vec fma(Vec a, const Vec& b, const Vec& c) {
  for (int i = 0; i < kWidth; ++i) a.v[i] = a.v[i] * b.v[i] + c.v[i];
  return a;
}
// c - a b for the range reduction, where the product needs more than float32: |a| is a small integer.
inline Vec fnma(Vec a, const Vec& b, const Vec& c) {
  for (int i = 0; i < kWidth; ++i) a.v[i] = static_cast<float>(c.v[i] - static_cast<double>(a.v[i]) * b.v[i]);
  return a;
}
// max(x, acc); a NaN in x leaves acc.
inline Vec max_or_keep(Vec x, const Vec& acc) {
  for (int i = 0; i < kWidth; ++i) x.v[i] = x.v[i] > acc.v[i] ? x.v[i] : acc.v[i];
  return x;
}
// y >= kLowest, true for NaN.
inline Mask counts(const Vec& y) {
  Mask r;
  for (int i = 0; i < kWidth; ++i) r.v[i] = !(y.v[i] < kLowest);
  return r;
}
// 2^n p where live, else 0; shifted = n + kRound holds n in its low bits, which are added to the exponent of
// p.
inline Vec scale(Vec p, const Vec& n, const Vec& shifted, const Mask& live) {
  (void)n;
  for (int i = 0; i < kWidth; ++i) {
    uint32_t bits, power;
    std::memcpy(&bits, &p.v[i], sizeof(bits));
    std::memcpy(&power, &shifted.v[i], sizeof(power));
    bits = live.v[i] ? bits + (power << 23) : 0;
    std::memcpy(&p.v[i], &bits, sizeof(bits));
  }
  return p;
}
inline bool all_below(const Vec& a, const Vec& b) {
  bool below = true;
  for (int i = 0; i < kWidth; ++i) below &= a.v[i] < b.v[i];
  return below;
}
inline bool any_above(const Vec& a, const Vec& b) {
  bool found = false;
  for (int i = 0; i < kWidth; ++i) found |= a.v[i] > b.v[i];
  return found;
}
// a b + c where live, else c.
inline Vec fma_where(const Mask& live, const Vec& a, const Vec& b, Vec c) {
  for (int i = 0; i < kWidth; ++i) c.v[i] += live.v[i] ? a.v[i] * b.v[i] : 0.0f;
  return c;
}
inline float max_lanes(const Vec& a) {
  float m = a.v[0];
  for (float x : a.v) m = x > m ? x : m;
  return m;
}
inline double sum_lanes(const Vec& a) {
  double sum = 0;
  for (float x : a.v) sum += x;
  return sum;
}
