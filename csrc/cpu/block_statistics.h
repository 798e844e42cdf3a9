// One block of at most 4096 logits: the innermost loops of sample_tokens and score_tokens.
//
//   m = max z      s = sum e^{z-m}      t = sum (z-m) e^{z-m}      s_e = sum e^{e(z-m)} for each exponent e
//
// One pass over spans of a few hundred logits: the sums are relative to the largest logit so far and are
// scaled when a span brings a larger one, which becomes rare quickly. So the logits come as one stream, and
// no term overflows since z - m <= 0. A masked entry (z = -inf) contributes exactly 0; a fully masked block
// gives
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
  // z[0..n) -> statistics; s_e to out[0..count) for exponents[0..count).
  BlockStatistics (*statistics)(const void* z, int n, const float* exponents, int count, double* out);
  // z[0..n) as float32 to buffer, padded with -inf to a multiple of kChunk.
  void (*load)(const void* z, int n, float* buffer);
  // max of buffer[0..n), n a multiple of kChunk; a NaN counts as -inf.
  float (*largest)(const float* buffer, int n);
  // e^{alpha (z - m)} of z[0..n) to weight, padded with 0 to a multiple of kChunk, and the sum of each chunk
  // of kChunk to sums. m = max z is finite, no NaN; z may be weight.
  void (*weigh)(const void* z, int n, float m, float alpha, float* weight, double* sums);
};

// The variant for the active ISA.
const BlockKernels& block_kernels(Dtype dtype);

}  // namespace fastpower
