// Four floats in GCC vector extensions: SSE2 on x86-64, NEON on aarch64. See attention_steps.inl for
// the terms.

struct Simd {
  typedef float F __attribute__((vector_size(16)));
  typedef int32_t I __attribute__((vector_size(16)));
  typedef uint32_t U __attribute__((vector_size(16)));
  static constexpr int kWidth = 4;
  static constexpr int kRows = 3;

  static F zero() { return F{0, 0, 0, 0}; }
  static F set(float x) { return F{x, x, x, x}; }
  static F load(const float* p) {
    F x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  template <class T>
  static F load(const T* p) {
    return F{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])};
  }
  static void store(float* p, F x) { std::memcpy(p, &x, sizeof x); }
  template <class T>
  static F load(const T* p, int n) {
    F x = zero();
    for (int i = 0; i < kWidth && i < n; ++i) x[i] = to_float(p[i]);
    return x;
  }
  template <class T>
  static void store(T* p, F x, int n) {
    for (int i = 0; i < kWidth && i < n; ++i) from_float(x[i], p + i);
  }
  template <class T>
  static void load_pair(const T* p, F* a, F* b) {
    *a = load(p);
    *b = load(p + kWidth);
  }
  template <class T>
  static void to_pair_order(T, F*, F*) {}
  template <class T>
  static void from_pair_order(T, F*, F*) {}
  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F div(F a, F b) { return a / b; }
  static F fma(F a, F b, F c) { return a * b + c; }
  static F select(I mask, F a, F b) {
    I x, y, z;
    std::memcpy(&x, &a, sizeof x);
    std::memcpy(&y, &b, sizeof y);
    z = (x & mask) | (y & ~mask);
    F r;
    std::memcpy(&r, &z, sizeof r);
    return r;
  }
  static F max(F a, F b) { return select(a > b, a, b); }
  static F less_select(F a, F b, F yes, F no) { return select(a < b, yes, no); }
  static F abs(F a) { return select(a < zero(), -a, a); }
  static float reduce_add(F x) { return (x[0] + x[2]) + (x[1] + x[3]); }
  static float reduce_max(F x) {
    const F y = max(F{x[0], x[1], x[0], x[1]}, F{x[2], x[3], x[2], x[3]});
    return y[0] > y[1] ? y[0] : y[1];
  }
  // x = n + f, n an integer, |f| <= 1/2; p2 = 2^n, 0 below the normal numbers. NaN passes through f.
  static F split_exponent(F x, F* p2) {
    x = max(set(-150.0f), x);
    const F magic = set(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
    const F shifted = x + magic;
    I bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    const I n = bits - 0x4b400000;
    const U power = (U)((n + 127) & (n > -127)) << 23;
    std::memcpy(p2, &power, sizeof power);
    return x - (shifted - magic);
  }
  // rows[k] holds the words d = 0 .. kWidth - 1 of key k: writes word d of the keys to out[d * stride ...].
  static void transpose(const F* rows, float* out, int stride, int n) {
    for (int d = 0; d < kWidth && d < n; ++d)
      store(out + d * stride, F{rows[0][d], rows[1][d], rows[2][d], rows[3][d]});
  }
  template <class T>
  static constexpr int block() {
    return kWidth;
  }
  template <class T>
  static void transpose(const T* base, int64_t stride, float* out, int out_stride) {
    F block[kWidth];
    for (int k = 0; k < kWidth; ++k) block[k] = load(base + k * stride);
    transpose(block, out, out_stride, kWidth);
  }
};
