// Register-tiled micro-kernels of `linear`, one table per (instruction set, weight dtype).
#pragma once

#include <cstdint>

#include "cpu/dtype.h"
#include "cpu/isa.h"

namespace fastpower {

// Packed steps of one panel, where to read ahead of them, `ahead_step` bytes (64 or 128) per step, whether
// sums begin here, so that acc holds nothing yet, and whether the panel streams from memory: then lines are
// fetched into L2 4 KiB behind `ahead` and into L1 2 KiB before it. One fetch from memory straight into L1
// occupies one of its few fill buffers for 100 ns: decoding was 6 to 14 % slower with those.
struct PanelStream {
  const char* w;
  const char* ahead;
  int64_t ahead_step;
  bool fresh;
  bool streams = false;
};
constexpr int64_t kIntoL2 = 4096, kIntoL1 = -2048;

// acc[i * 32 + c] += Σ_{s < steps} x_i[s] · w[s][c] for `rows` rows i, s ascending. x_stride in bytes; acc
// 64-byte aligned.
using LinearKernel = void (*)(int64_t rows, const char* x, int64_t x_stride, PanelStream stream,
                              int64_t steps, float* acc);

struct LinearKernels {
  int64_t max_rows;  // of one call
  int64_t x_step;    // bytes of x per step
  LinearKernel run;
  void (*begin)(int64_t rows);  // before calls for that many rows, and
  void (*end)();                // after them; or null
};

const LinearKernels& linear_kernels(Isa isa, Dtype weight);

}  // namespace fastpower
