// y = x Wᵀ + b for few rows at read bandwidth and many rows at FMA speed, with weights packed once.
//
// Packing. The output columns are cut in panels of 32. A panel holds, for every step over the inputs, the
// weights of its 32 columns side by side: one float32 per column, or a pair (k, k + 1) of bfloat16, which is
// what vdpbf16ps eats and what two cheap integer operations turn into float32 elsewhere. One step is 128
// bytes = 2 cache lines, and a panel is one contiguous stream. Padding (columns up to 32, the last odd input)
// is zero.
//
// Batch invariance. Every output (row, column) is one float32 lane that accumulates k = 0, 1, 2, … in that
// order, starting from zero, whatever the number of rows in the register tile, the row's place in it, the K
// blocking (the accumulators are stored and loaded, which rounds nothing) or the thread. The bias is added
// last. So a row's bits depend on the row, the weights and the instruction set only.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/dtype.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace fastpower {

constexpr int64_t kPanel = 32;     // output columns of a panel
constexpr int64_t kTileRows = 96;  // rows that share one pass over a panel's K block

// Packed weights; the memory belongs to the caller.
struct Linear {
  Dtype dtype;
  int64_t in, out;
  const void* panels;  // packed_bytes(), 64-byte aligned
  const float* bias;   // (out,) or null
  int64_t panel_count() const { return (out + kPanel - 1) / kPanel; }
  int64_t steps() const { return dtype == Dtype::float32 ? in : (in + 1) / 2; }
  int64_t panel_bytes() const { return steps() * kPanel * 4; }
  int64_t packed_bytes() const { return panel_count() * panel_bytes(); }
};

// weight (out, in) of linear.dtype with row stride in elements, last stride 1 → linear.panels.
void pack_linear(const Linear& linear, const void* weight, int64_t row_stride, void* panels);
void unpack_linear(const Linear& linear, void* weight);  // (out, in) contiguous

// Rows as the kernels of an instruction set read them: bfloat16 for vdpbf16ps and tiles, float32 otherwise;
// an odd last input of bfloat16 weights is followed by a zero.
struct Rows {
  Isa isa;
  const char* data;
  int64_t stride;  // bytes
  const char* row(int64_t i) const { return data + i * stride; }
  // Whether rows for weights of this dtype are bfloat16.
  static bool narrow(Isa isa, Dtype weight) { return isa >= Isa::avx512_bf16 && weight == Dtype::bfloat16; }
};

// acc[i * kPanel + c] = Σ_k x[row0 + i, k] W[panel · 32 + c, k] + bias for i < rows ≤ kTileRows; acc is
// 64-byte aligned. Runs on the calling thread: the building block of every fused kernel.
void linear_tile(const Linear& linear, const Rows& x, int64_t row0, int64_t rows, int64_t panel, float* acc);

// Cuts (rows, panels) into tasks: runs of panels long enough to stream, short enough to balance unequal
// threads.
struct LinearTasks {
  LinearTasks(const Linear& linear, int64_t rows);
  int64_t row_tiles, run, runs;
  int64_t count() const { return row_tiles * runs; }
};

// Calls visit(row0, rows, panel) for every row tile and panel, in parallel.
template <typename Visit>
void for_each_panel(const Linear& linear, int64_t rows, const Visit& visit) {
  const LinearTasks tasks(linear, rows);
  parallel_for(tasks.count(), [&](int64_t task) {
    const int64_t row0 = (task / tasks.runs) * kTileRows, count = std::min(kTileRows, rows - row0);
    const int64_t begin = (task % tasks.runs) * tasks.run;
    const int64_t end = std::min(linear.panel_count(), begin + tasks.run);
    for (int64_t panel = begin; panel < end; ++panel) visit(row0, count, panel);
  });
}

// The product with what follows it fused: store(row, column, columns, values) gets up to 32 consecutive
// outputs of a row. Each output comes exactly once, from one thread.
template <typename Store>
void linear_into(const Linear& linear, const Rows& x, int64_t rows, const Store& store) {
  for_each_panel(linear, rows, [&](int64_t row0, int64_t count, int64_t panel) {
    alignas(64) float acc[kTileRows * kPanel];
    linear_tile(linear, x, row0, count, panel, acc);
    const int64_t column = panel * kPanel, columns = std::min(kPanel, linear.out - column);
    for (int64_t i = 0; i < count; ++i) store(row0 + i, column, columns, acc + i * kPanel);
  });
}

// y (rows, out) of out_dtype, row stride in elements; x of linear.dtype. Uses parallel_for.
void linear(const Linear& linear, const void* x, int64_t rows, int64_t x_stride, void* y, int64_t y_stride,
            Dtype out_dtype);

}  // namespace fastpower
