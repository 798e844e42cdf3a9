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

#include <cstdint>
#include <memory>

#include "cpu/dtype.h"
#include "cpu/isa.h"

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

// Rows as the kernels of the active instruction set want them: bfloat16 as it is for vdpbf16ps, float32
// otherwise.
class Rows {
 public:
  Rows(const void* x, int64_t rows, int64_t in, int64_t row_stride, Dtype dtype);  // row_stride in elements
  const char* row(int64_t i) const { return data_ + i * stride_; }
  int64_t stride() const { return stride_; }  // bytes
  Isa isa() const { return isa_; }

 private:
  Isa isa_;
  const char* data_;
  int64_t stride_;
  std::unique_ptr<char[]> scratch_;
};

// acc[i * kPanel + c] = Σ_k x[row0 + i, k] W[panel · 32 + c, k] for i < rows ≤ kTileRows; no bias. acc is
// 64-byte aligned. Runs on the calling thread: the building block of every fused kernel.
void linear_tile(const Linear& linear, const Rows& x, int64_t row0, int64_t rows, int64_t panel, float* acc);

// y (rows, out) of out_dtype, row stride in elements; x of linear.dtype. Uses parallel_for.
void linear(const Linear& linear, const void* x, int64_t rows, int64_t x_stride, void* y, int64_t y_stride,
            Dtype out_dtype);

}  // namespace fastpower
