#include "cpu/linear/linear_kernels.h"

#include <cstring>

#include "cpu/amx_tiles.h"
#include "cpu/linear/linear.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastpower {
namespace {

inline float load_float(const char* at) {
  float value;
  std::memcpy(&value, at, 4);
  return value;
}

#if defined(__x86_64__)

inline int load_pair(const char* at) {
  int value;
  std::memcpy(&value, at, 4);
  return value;
}

// Two lines each; with far = near = 0 the second pair finds what the first has asked for.
inline __attribute__((always_inline)) void fetch(const char* ahead, int64_t near, int64_t far) {
  __builtin_prefetch(ahead + near, 0, 3);
  __builtin_prefetch(ahead + near + 64, 0, 3);
  __builtin_prefetch(ahead + far, 0, 2);
  __builtin_prefetch(ahead + far + 64, 0, 2);
}

// ---- AVX-512: 2 vectors of columns × up to 12 rows = 24 accumulators. kRows stays a compile-time loop
// bound.

template <int R>
FASTPOWER_AVX512_BF16 void avx512_bf16_pairs(const char* x, int64_t x_stride, PanelStream stream,
                                             int64_t steps, float* acc) {
  const char *w = stream.w, *ahead = stream.ahead;
  const int64_t near = stream.streams ? kIntoL1 : 0, far = stream.streams ? kIntoL2 : 0;
  const __mmask16 kept = stream.fresh ? 0 : 0xffff;
  __m512 sum[R][2];
#pragma GCC unroll 12
  for (int i = 0; i < R; ++i) {
    sum[i][0] = _mm512_maskz_load_ps(kept, acc + i * kPanel);
    sum[i][1] = _mm512_maskz_load_ps(kept, acc + i * kPanel + 16);
  }
  for (int64_t s = 0; s < steps; ++s, w += kPanel * 4, ahead += stream.ahead_step, x += 4) {
    fetch(ahead, near, far);
    const __m512bh w0 = (__m512bh)_mm512_loadu_si512(w), w1 = (__m512bh)_mm512_loadu_si512(w + 64);
#pragma GCC unroll 12
    for (int i = 0; i < R; ++i) {
      const __m512bh v = (__m512bh)_mm512_set1_epi32(load_pair(x + i * x_stride));
      sum[i][0] = _mm512_dpbf16_ps(sum[i][0], w0, v);
      sum[i][1] = _mm512_dpbf16_ps(sum[i][1], w1, v);
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < R; ++i) {
    _mm512_store_ps(acc + i * kPanel, sum[i][0]);
    _mm512_store_ps(acc + i * kPanel + 16, sum[i][1]);
  }
}

template <int R>
FASTPOWER_AVX512 void avx512_pairs(const char* x, int64_t x_stride, PanelStream stream, int64_t steps,
                                   float* acc) {
  const char *w = stream.w, *ahead = stream.ahead;
  const int64_t near = stream.streams ? kIntoL1 : 0, far = stream.streams ? kIntoL2 : 0;
  const __mmask16 kept = stream.fresh ? 0 : 0xffff;
  __m512 sum[R][2];
#pragma GCC unroll 12
  for (int i = 0; i < R; ++i) {
    sum[i][0] = _mm512_maskz_load_ps(kept, acc + i * kPanel);
    sum[i][1] = _mm512_maskz_load_ps(kept, acc + i * kPanel + 16);
  }
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  for (int64_t s = 0; s < steps; ++s, w += kPanel * 4, ahead += stream.ahead_step, x += 8) {
    fetch(ahead, near, far);
    const __m512i p0 = _mm512_loadu_si512(w), p1 = _mm512_loadu_si512(w + 64);
    const __m512 even0 = _mm512_castsi512_ps((__m512i)((__v16su)p0 << 16));
    const __m512 even1 = _mm512_castsi512_ps((__m512i)((__v16su)p1 << 16));
#pragma GCC unroll 12
    for (int i = 0; i < R; ++i) {
      const __m512 v = _mm512_set1_ps(load_float(x + i * x_stride));
      sum[i][0] = _mm512_fmadd_ps(even0, v, sum[i][0]);
      sum[i][1] = _mm512_fmadd_ps(even1, v, sum[i][1]);
    }
    const __m512 odd0 = _mm512_castsi512_ps(_mm512_and_si512(p0, high));
    const __m512 odd1 = _mm512_castsi512_ps(_mm512_and_si512(p1, high));
#pragma GCC unroll 12
    for (int i = 0; i < R; ++i) {
      const __m512 v = _mm512_set1_ps(load_float(x + i * x_stride + 4));
      sum[i][0] = _mm512_fmadd_ps(odd0, v, sum[i][0]);
      sum[i][1] = _mm512_fmadd_ps(odd1, v, sum[i][1]);
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < R; ++i) {
    _mm512_store_ps(acc + i * kPanel, sum[i][0]);
    _mm512_store_ps(acc + i * kPanel + 16, sum[i][1]);
  }
}

template <int R>
FASTPOWER_AVX512 void avx512_floats(const char* x, int64_t x_stride, PanelStream stream, int64_t steps,
                                    float* acc) {
  const char *w = stream.w, *ahead = stream.ahead;
  const int64_t near = stream.streams ? kIntoL1 : 0, far = stream.streams ? kIntoL2 : 0;
  const __mmask16 kept = stream.fresh ? 0 : 0xffff;
  __m512 sum[R][2];
#pragma GCC unroll 12
  for (int i = 0; i < R; ++i) {
    sum[i][0] = _mm512_maskz_load_ps(kept, acc + i * kPanel);
    sum[i][1] = _mm512_maskz_load_ps(kept, acc + i * kPanel + 16);
  }
  for (int64_t s = 0; s < steps; ++s, w += kPanel * 4, ahead += stream.ahead_step, x += 4) {
    fetch(ahead, near, far);
    const __m512 w0 = _mm512_loadu_ps(w), w1 = _mm512_loadu_ps(w + 64);
#pragma GCC unroll 12
    for (int i = 0; i < R; ++i) {
      const __m512 v = _mm512_set1_ps(load_float(x + i * x_stride));
      sum[i][0] = _mm512_fmadd_ps(w0, v, sum[i][0]);
      sum[i][1] = _mm512_fmadd_ps(w1, v, sum[i][1]);
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < R; ++i) {
    _mm512_store_ps(acc + i * kPanel, sum[i][0]);
    _mm512_store_ps(acc + i * kPanel + 16, sum[i][1]);
  }
}

// ---- AMX: 2 tiles of 16 columns × 1 tile of up to 16 rows, 16 steps at a time. tdpbf16ps adds the pairs of
// one output in ascending order, one output per lane of its row, so the number of rows in a tile changes
// nothing. Four tile registers and no more: the registers that renaming needs are shared with whatever else
// runs on the core, and 2 × 2 tiles, which load less, were measured at half the speed when it uses tiles too.

// Tiles 0 and 1 are the sums of the left and the right columns, 2 the input, 3 the weights.
FASTPOWER_AMX void configure_tiles(int64_t rows, int64_t depth) {
  TileConfig config;
  config.set(0, rows, 64);
  config.set(1, rows, 64);
  config.set(2, rows, 4 * depth);
  config.set(3, depth, 64);
  config.load();
}

FASTPOWER_AMX void amx_begin(int64_t rows) { configure_tiles(rows, 16); }
FASTPOWER_AMX void amx_end() { _tile_release(); }

// Blocks of `depth` ≤ 16 steps each.
FASTPOWER_AMX void amx_blocks(const char* x, int64_t x_stride, PanelStream stream, int64_t blocks,
                              int64_t depth, float* acc) {
  constexpr int64_t kStep = kPanel * 4;  // bytes of a step, and of a row of acc
  const char *w = stream.w, *ahead = stream.ahead;
  if (stream.fresh) {
    _tile_zero(0);
    _tile_zero(1);
  } else {
    _tile_loadd(0, acc, kStep);
    _tile_loadd(1, acc + 16, kStep);
  }
  for (int64_t b = 0; b < blocks;
       ++b, w += depth * kStep, ahead += depth * stream.ahead_step, x += 4 * depth) {
    if (stream.streams)
      for (int64_t line = 0; line < depth * stream.ahead_step; line += 128)
        fetch(ahead + line, kIntoL1, kIntoL2);
    else
      for (int64_t line = 0; line < depth * stream.ahead_step; line += 64)
        _mm_prefetch(ahead + line, _MM_HINT_T0);
    _tile_loadd(2, x, x_stride);
    _tile_loadd(3, w, kStep);
    _tile_dpbf16ps(0, 2, 3);
    _tile_loadd(3, w + 64, kStep);
    _tile_dpbf16ps(1, 2, 3);
  }
  _tile_stored(0, acc, kStep);
  _tile_stored(1, acc + 16, kStep);
}

void amx_pairs(int64_t rows, const char* x, int64_t x_stride, PanelStream stream, int64_t steps, float* acc) {
  const int64_t blocks = steps / 16, rest = steps % 16;
  if (blocks) amx_blocks(x, x_stride, stream, blocks, 16, acc);
  if (!rest) return;
  stream.fresh = stream.fresh && !blocks;
  stream.w += blocks * 16 * kPanel * 4;
  stream.ahead += blocks * 16 * stream.ahead_step;
  configure_tiles(rows, rest);
  amx_blocks(x + blocks * 64, x_stride, stream, 1, rest, acc);
  configure_tiles(rows, 16);
}

// ---- AVX2: 4 vectors of columns × up to 3 rows = 12 of 16 registers.

template <int R, bool kPairs>
FASTPOWER_AVX2 void avx2_any(const char* x, int64_t x_stride, PanelStream stream, int64_t steps, float* acc) {
  const char *w = stream.w, *ahead = stream.ahead;
  __m256 sum[R][4];
#pragma GCC unroll 3
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j)
      sum[i][j] = stream.fresh ? _mm256_setzero_ps() : _mm256_load_ps(acc + i * kPanel + 8 * j);
  const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  for (int64_t s = 0; s < steps; ++s, w += kPanel * 4, ahead += stream.ahead_step, x += kPairs ? 8 : 4) {
    _mm_prefetch(ahead, _MM_HINT_T0);
    _mm_prefetch(ahead + 64, _MM_HINT_T0);
#pragma GCC unroll 2
    for (int half = 0; half < (kPairs ? 2 : 1); ++half) {
      __m256 v[R];
#pragma GCC unroll 3
      for (int i = 0; i < R; ++i) v[i] = _mm256_set1_ps(load_float(x + i * x_stride + 4 * half));
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + 32 * j));
        if (kPairs) bits = half == 0 ? _mm256_slli_epi32(bits, 16) : _mm256_and_si256(bits, high);
#pragma GCC unroll 3
        for (int i = 0; i < R; ++i) sum[i][j] = _mm256_fmadd_ps(_mm256_castsi256_ps(bits), v[i], sum[i][j]);
      }
    }
  }
#pragma GCC unroll 3
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) _mm256_store_ps(acc + i * kPanel + 8 * j, sum[i][j]);
}

#endif  // __x86_64__

template <bool kPairs>
void portable_row(int64_t, const char* x, int64_t, PanelStream stream, int64_t steps, float* acc) {
  const char* w = stream.w;
  float sum[kPanel] = {};
  if (!stream.fresh) std::memcpy(sum, acc, sizeof(sum));
  for (int64_t s = 0; s < steps; ++s, w += kPanel * 4, x += kPairs ? 8 : 4) {
    if (kPairs) {
      const float even = load_float(x), odd = load_float(x + 4);
      for (int64_t c = 0; c < kPanel; ++c) {
        bfloat16 pair[2];
        std::memcpy(pair, w + 4 * c, 4);
        sum[c] += even * to_float(pair[0]);
        sum[c] += odd * to_float(pair[1]);
      }
    } else {
      const float value = load_float(x);
      for (int64_t c = 0; c < kPanel; ++c) sum[c] += value * load_float(w + 4 * c);
    }
  }
  std::memcpy(acc, sum, sizeof(sum));
}

// One instance of a tile kernel per number of rows, chosen by table.
#define FASTPOWER_UP_TO_12(NAME, F)                                                                         \
  void NAME(int64_t rows, const char* x, int64_t x_stride, PanelStream stream, int64_t steps, float* acc) { \
    static constexpr decltype(&F<1>) kRows[] = {F<1>, F<2>, F<3>, F<4>,  F<5>,  F<6>,                       \
                                                F<7>, F<8>, F<9>, F<10>, F<11>, F<12>};                     \
    kRows[rows - 1](x, x_stride, stream, steps, acc);                                                       \
  }

#if defined(__x86_64__)
FASTPOWER_UP_TO_12(run_avx512_bf16_pairs, avx512_bf16_pairs)
FASTPOWER_UP_TO_12(run_avx512_pairs, avx512_pairs)
FASTPOWER_UP_TO_12(run_avx512_floats, avx512_floats)

template <bool kPairs>
void run_avx2(int64_t rows, const char* x, int64_t x_stride, PanelStream stream, int64_t steps, float* acc) {
  static constexpr decltype(&avx2_any<1, kPairs>) kRows[] = {avx2_any<1, kPairs>, avx2_any<2, kPairs>,
                                                             avx2_any<3, kPairs>};
  kRows[rows - 1](x, x_stride, stream, steps, acc);
}
#endif

}  // namespace

const LinearKernels& linear_kernels(Isa isa, Dtype weight) {
  const bool pairs = weight == Dtype::bfloat16;
#if defined(__x86_64__)
  static const LinearKernels kFloats512{12, 4, run_avx512_floats, nullptr, nullptr};
  static const LinearKernels kPairs512{12, 8, run_avx512_pairs, nullptr, nullptr};
  static const LinearKernels kPairsBf16{12, 4, run_avx512_bf16_pairs, nullptr, nullptr};
  static const LinearKernels kPairsAmx{16, 4, amx_pairs, amx_begin, amx_end};
  static const LinearKernels kFloats2{3, 4, run_avx2<false>, nullptr, nullptr};
  static const LinearKernels kPairs2{3, 8, run_avx2<true>, nullptr, nullptr};
  if (isa == Isa::amx && pairs) return kPairsAmx;
  if (isa == Isa::avx512_bf16 && pairs) return kPairsBf16;
  if (isa >= Isa::avx512) return pairs ? kPairs512 : kFloats512;
  if (isa == Isa::avx2) return pairs ? kPairs2 : kFloats2;
#endif
  (void)isa;
  static const LinearKernels kFloats{1, 4, portable_row<false>, nullptr, nullptr};
  static const LinearKernels kPairs{1, 8, portable_row<true>, nullptr, nullptr};
  return pairs ? kPairs : kFloats;
}

}  // namespace fastpower
