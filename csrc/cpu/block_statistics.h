// One block of at most 4096 logits: the innermost loops of sample_tokens and score_tokens.
//
//   m = max z      s = sum e^{z-m}      t = sum (z-m) e^{z-m}      s_e = sum e^{e(z-m)} for each exponent e
//
// Two passes: the maximum, then everything else while the block is in the first-level cache. No term
// overflows since z - m <= 0, and the largest is exactly 1. A masked entry (z = -inf) contributes exactly 0;
// a fully masked block gives
// (-inf, 0, 0, 0). A NaN or +inf anywhere makes s NaN. Terms below e^-86 count as 0.
//
// s_e for e = 1, 2, 4, 8, 16 are powers of e^{z-m}, which costs one to four multiplications; any other
// exponent has an exponential of its own. Neither choice depends on which other exponents are asked for.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"

namespace fastpower {

constexpr int kBlock = 4096;
constexpr int kChunk = 64;  // granularity of the running sums of a draw

struct BlockStatistics {
  double m, s, t;
};

struct BlockKernels {
  // z[0..n) -> statistics; s_e to out[0..count) for exponents[0..count).
  BlockStatistics (*statistics)(const void* z, int n, const float* exponents, int count, double* out);
  // z[0..n) as float32 to buffer, padded with -inf to a multiple of kChunk.
  void (*load)(const void* z, int n, float* buffer);
  // buffer[0..n) (n a multiple of kChunk) := e^{alpha (z - m)} with m = max z, which is returned; the sum of
  // each chunk of kChunk to sums; all 0 if m = -inf. buffer must hold no NaN or +inf.
  float (*weigh)(float* buffer, int n, float alpha, double* sums);
};

// The variant for the active ISA.
const BlockKernels& block_kernels(Dtype dtype);

}  // namespace fastpower
