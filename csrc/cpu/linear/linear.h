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
//
// Quantised weights stay as small as their file has them (quantised_panels.h); rows for them are blocks of
// 16-bit integers (quantised_rows.h), whatever their dtype. One number of rows or another only chooses
// between kernels that compute the same sums.
#pragma once

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

#include "cpu/dtype.h"
#include "cpu/isa.h"
#include "cpu/linear/quantised_panels.h"
#include "cpu/linear/quantised_rows.h"
#include "cpu/parallel.h"

namespace fastpower {

constexpr int64_t kPanel = 32;     // output columns of a panel
constexpr int64_t kTileRows = 96;  // rows that share one pass over a panel's K block

// Packed weights; the memory belongs to the caller.
struct Linear {
  Dtype dtype;
  int64_t in, out;
  const void* panels;             // packed_bytes(), 64-byte aligned
  const float* bias;              // (out,) or null
  Format format = Format::dense;  // of the weights; quantised ones have dtype float32
  int64_t panel_count() const { return (out + kPanel - 1) / kPanel; }
  int64_t steps() const { return dtype == Dtype::float32 ? in : (in + 1) / 2; }
  int64_t panel_bytes() const {
    return format == Format::dense ? steps() * kPanel * 4 : quantised_panel_bytes(format, in);
  }
  int64_t packed_bytes() const { return panel_count() * panel_bytes(); }
  const char* panel_data(int64_t panel) const {
    return static_cast<const char*>(panels) + panel * panel_bytes();
  }
};

// rows: where each of linear.out rows of a file begins (see pack_quantised); the format is linear.format.
void pack_quantised_linear(const Linear& linear, const uint64_t* rows, void* panels);

// weight (out, in) of linear.dtype with row stride in elements, last stride 1 → linear.panels.
void pack_linear(const Linear& linear, const void* weight, int64_t row_stride, void* panels);
void unpack_linear(const Linear& linear, void* weight);  // (out, in) contiguous

// Weights are read once per decode step, so each 4 KiB page would cost a TLB miss per step.
void ask_for_huge_pages(void* data, int64_t bytes);

// Output row `row` of quantised weights, in float32 (linear.in).
void unpack_row(const Linear& linear, int64_t row, float* out);

// Rows as the kernels of an instruction set read them: bfloat16 for vdpbf16ps and tiles, float32 otherwise;
// an odd last input of bfloat16 weights is followed by a zero.
struct Rows {
  Isa isa;
  const char* data;
  int64_t stride;  // bytes
  // blocks: what quantised weights need; float32 dense weights take them as well.
  enum class Form { plain, words, digits } form = Form::plain;
  const char* row(int64_t i) const { return data + i * stride; }
  // Whether rows for weights of this dtype are bfloat16.
  static bool narrow(Isa isa, Dtype weight) { return isa >= Isa::avx512_bf16 && weight == Dtype::bfloat16; }
};

// acc[i * kPanel + c] = Σ_k x[row0 + i, k] W[panel · 32 + c, k] + bias for i < rows ≤ kTileRows; acc is
// 64-byte aligned. Runs on the calling thread: the building block of every fused kernel. `next`: the panel
// that this thread will read after this one, fetched ahead; or null.
void linear_tile(const Linear& linear, const Rows& x, int64_t row0, int64_t rows, int64_t panel,
                 const char* next, float* acc);

// (rows, panels) cut into tasks of one panel for one tile of rows. Tiles come in blocks whose rows stay in
// L2; inside a block all tiles of one panel follow each other, so that weights are read once per block.
class LinearTasks {
 public:
  LinearTasks(const Linear& linear, int64_t rows) : LinearTasks(linear, linear.panel_count(), rows) {}
  LinearTasks(const Linear& linear, int64_t panels, int64_t rows);  // of several linears of the same inputs
  struct Task {
    int64_t row0, rows, panel;
  };
  int64_t count() const { return panels_ * tiles_; }
  Task operator[](int64_t task) const;

 private:
  int64_t rows_, panels_, tiles_, block_tiles_;
};

// Calls visit(row0, rows, panel, next) for every row tile and panel, in parallel. `next`: the panel that the
// same thread visits after it; behind the last one, the first that it would read of `then`; −1 if unknown.
struct NextPanel {
  const Linear* linear;
  int64_t panel;
  const char* data() const { return linear ? linear->panel_data(panel) : nullptr; }
};

template <typename Visit>
void for_each_panel(const Linear& linear, int64_t rows, const Linear* then, const Visit& visit) {
  const LinearTasks tasks(linear, rows);
  parallel_runs(tasks.count(), [&](const RunTask& run) {
    const LinearTasks::Task task = tasks[run.task];
    NextPanel next{nullptr, 0};
    if (run.next >= 0)
      next = {&linear, tasks[run.next].panel};
    else if (then)
      next = {then, std::min(run_begin(then->panel_count(), run.run), then->panel_count() - 1)};
    visit(task.row0, task.rows, task.panel, next);
  });
}

// The product with what follows it fused: store(row, column, columns, values) gets up to 32 consecutive
// outputs of a row. Each output comes exactly once, from one thread.
template <typename Store>
void linear_into(const Linear& linear, const Rows& x, int64_t rows, const Linear* then, const Store& store) {
  for_each_panel(linear, rows, then, [&](int64_t row0, int64_t count, int64_t panel, const NextPanel& next) {
    alignas(64) float acc[kTileRows * kPanel];
    linear_tile(linear, x, row0, count, panel, next.data(), acc);
    const int64_t column = panel * kPanel, columns = std::min(kPanel, linear.out - column);
    for (int64_t i = 0; i < count; ++i) store(row0 + i, column, columns, acc + i * kPanel);
  });
}

// The same for several linears of one input, whose outputs follow each other: one pass for q, k and v, which
// a file may keep in different formats.
template <typename Store>
void linear_into(const std::vector<Linear>& parts, const Rows& x, int64_t rows, const Linear* then,
                 const Store& store) {
  if (parts.size() == 1) return linear_into(parts[0], x, rows, then, store);
  int64_t panels = 0;
  for (const Linear& part : parts) panels += part.panel_count();
  const LinearTasks tasks(parts[0], panels, rows);
  // (part, panel of it, first output of the part)
  const auto find = [&parts](int64_t panel) {
    size_t i = 0;
    int64_t first = 0;
    for (; panel >= parts[i].panel_count(); ++i) {
      panel -= parts[i].panel_count();
      first += parts[i].out;
    }
    return std::make_tuple(&parts[i], panel, first);
  };
  parallel_runs(tasks.count(), [&](const RunTask& run) {
    const LinearTasks::Task task = tasks[run.task];
    const auto [part, panel, first] = find(task.panel);
    const char* next = nullptr;
    if (run.next >= 0) {
      const auto [following, place, start] = find(tasks[run.next].panel);
      next = following->panel_data(place);
    } else if (then) {
      next = then->panel_data(std::min(run_begin(then->panel_count(), run.run), then->panel_count() - 1));
    }
    alignas(64) float acc[kTileRows * kPanel];
    linear_tile(*part, x, task.row0, task.rows, panel, next, acc);
    const int64_t column = panel * kPanel, columns = std::min(kPanel, part->out - column);
    for (int64_t i = 0; i < task.rows; ++i) store(task.row0 + i, first + column, columns, acc + i * kPanel);
  });
}

// y (rows, out) of out_dtype, row stride in elements; x of linear.dtype, or of x_dtype for quantised weights.
// Uses parallel_for.
void linear(const Linear& linear, const void* x, int64_t rows, int64_t x_stride, void* y, int64_t y_stride,
            Dtype out_dtype, Dtype x_dtype = Dtype::float32);

}  // namespace fastpower
