// One block of at most 4096 logits: the innermost loops of sample_tokens and score_tokens.
//
//   s = sum e^{z-m}      t = sum (z-m) e^{z-m}      s_e = sum e^{e(z-m)} for each exponent e
//
// One pass: the sums are relative to a reference, the largest of the first few hundred logits. It is raised,
// and the sums are scaled, when a quarter of the block shows a logit so far above it (4 nats) that powers
// could overflow; without AVX-512 it is the largest logit so far. So the logits come as one stream. A masked
// entry (z = -inf) contributes exactly 0; a fully masked block gives m = -inf and sums of 0. A NaN or +inf
// anywhere makes s NaN. Terms below e^-86 count as 0.
//
// s_e for e = 1, 2, 4, 8, 16 are powers of e^{z-m}, which costs one to four multiplications. Any other
// exponent has a pass with an exponential of its own, relative to the largest logit, so that no exponent is
// too large. Neither choice, and not m, depends on which other exponents are asked for.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"

namespace fastpower {

constexpr int kBlock = 4096;
constexpr int kQuarter = kBlock / 4, kQuarters = 4;
constexpr int kChunk = 64;  // granularity of the running sums of a draw

// How often e^d is squared to give e^{e d}; 0 for e = 1, -1 if it is not.
inline int squarings(float exponent) {
  return exponent == 1    ? 0
         : exponent == 2  ? 1
         : exponent == 4  ? 2
         : exponent == 8  ? 3
         : exponent == 16 ? 4
                          : -1;
}

struct BlockStatistics {
  double m, s, t;
  double top;  // the largest logit if an exponent has an exponential of its own: what its s_e is relative to
};

// What a draw with exponent e wants to know of a quarter of a block: mass = sum e^{e(z-m)}.
struct Quarter {
  double m = 0, mass = 0;
};

// While one lives, this thread's subnormal results are 0. Powers of small terms would otherwise be subnormal,
// which costs a hundred cycles each and means nothing here. The kernels below must run inside one: switching
// costs as much as dozens of logits, so it is done once for many blocks.
class FlushSubnormals {
 public:
  FlushSubnormals();
  ~FlushSubnormals();
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;

 private:
  unsigned saved_;
};

struct BlockKernels {
  // z[0..n) -> statistics; s_e to out[0..count) for exponents[0..count). The quarters of exponents[drawn],
  // as many as n has, to quarters; drawn = -1 for none.
  BlockStatistics (*statistics)(const void* z, int n, const float* exponents, int count, double* out,
                                int drawn, Quarter* quarters);
  // z[0..n) as float32 to buffer, padded with -inf to a multiple of kChunk.
  void (*load)(const void* z, int n, float* buffer);
  // max z[0..n); a NaN counts as -inf.
  float (*largest)(const void* z, int n);
  // e^{alpha (z - m)} of z[0..n) to weight, padded with 0 to a multiple of kChunk, and the sum of each chunk
  // of kChunk to sums. m is finite; no NaN; alpha (z - m) is at most 80, without AVX-512 at most 0. z may be
  // weight.
  void (*weigh)(const void* z, int n, float m, float alpha, float* weight, double* sums);
  // sum_k (z_k[i] - m_k - l_k) of `count` rows z_k[0..n) to out[0..n), in order of k. -inf stays -inf.
  void (*pool)(const void* const* z, const float* m, const float* l, int count, int n, float* out);
};

// The variant for the active ISA.
const BlockKernels& block_kernels(Dtype dtype);

}  // namespace fastpower
