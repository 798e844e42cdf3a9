#include "cpu/linear/linear.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "cpu/linear/linear_kernels.h"
#include "cpu/linear/quantised_kernels.h"
#include "cpu/parallel.h"
#include "cpu/sampling/row_math.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastpower {
namespace {

constexpr int64_t kStepBytes = kPanel * 4;
// K blocks of at most 20 KiB of a panel: this one, which every row tile after the first reads from L1, and
// the next, which is being fetched.
constexpr int64_t kBlockSteps = 160;
constexpr int64_t kBlockBytes = 1 << 20;  // of rows that pass over all panels while they stay in L2
constexpr int64_t kAhead = 4096;          // bytes read ahead when a panel is passed over once
constexpr int64_t kSerial = 1 << 15;      // elements: waking a thread costs more than converting fewer

}  // namespace

void ask_for_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHuge = 2 << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + 4095) & ~uintptr_t{4095};
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) & ~uintptr_t{4095};
  if (end > begin && end - begin >= kHuge)
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

void pack_linear(const Linear& linear, const void* weight, int64_t row_stride, void* panels) {
  ask_for_huge_pages(panels, linear.packed_bytes());
  const int64_t steps = linear.steps();
  parallel_for(linear.panel_count(), [&](int64_t panel) {
    const int64_t columns = std::min(kPanel, linear.out - panel * kPanel);
    char* target = static_cast<char*>(panels) + panel * linear.panel_bytes();
    std::memset(target, 0, linear.panel_bytes());
    for (int64_t c = 0; c < columns; ++c) {
      const int64_t row = (panel * kPanel + c) * row_stride;
      if (linear.dtype == Dtype::float32) {
        const float* source = static_cast<const float*>(weight) + row;
        float* lane = reinterpret_cast<float*>(target) + c;
        for (int64_t k = 0; k < steps; ++k) lane[k * kPanel] = source[k];
      } else {
        const uint16_t* source = static_cast<const uint16_t*>(weight) + row;
        uint16_t* lane = reinterpret_cast<uint16_t*>(target) + 2 * c;
        for (int64_t k = 0; k < linear.in; ++k) lane[(k / 2) * 2 * kPanel + k % 2] = source[k];
      }
    }
  });
}

void pack_quantised_linear(const Linear& linear, const uint64_t* rows, void* panels) {
  ask_for_huge_pages(panels, linear.packed_bytes());
  pack_quantised(linear.format, linear.in, linear.out, rows, panels);
}

void unpack_linear(const Linear& linear, void* weight) {
  if (linear.format != Format::dense)
    return unpack_quantised(linear.format, linear.in, linear.out, linear.panels, static_cast<float*>(weight));
  for (int64_t row = 0; row < linear.out; ++row) {
    const char* panel = static_cast<const char*>(linear.panels) + (row / kPanel) * linear.panel_bytes();
    const int64_t c = row % kPanel;
    for (int64_t k = 0; k < linear.in; ++k) {
      if (linear.dtype == Dtype::float32)
        static_cast<float*>(weight)[row * linear.in + k] =
            reinterpret_cast<const float*>(panel)[k * kPanel + c];
      else
        static_cast<uint16_t*>(weight)[row * linear.in + k] =
            reinterpret_cast<const uint16_t*>(panel)[(k / 2) * 2 * kPanel + 2 * c + k % 2];
    }
  }
}

void unpack_row(const Linear& linear, int64_t row, float* out) {
  const char* panel = linear.panel_data(row / kPanel);
  for (int64_t block = 0; block < linear.in / kQuantBlock; ++block)
    dequantise_block(linear.format, panel_block(linear.format, panel, row % kPanel, block),
                     out + block * kQuantBlock);
}

namespace {

// One pass over the panel, which reads ahead of itself, at the end into the next panel.
void pass_once(const LinearKernels& kernels, const Linear& linear, const Rows& x, int64_t row0, int64_t rows,
               const char* w, const char* next, float* acc) {
  const int64_t steps = linear.steps();
  const int64_t body = std::max<int64_t>(0, steps - kAhead / kStepBytes) / 16 * 16;
  const char* row = x.row(row0);
  if (kernels.begin) kernels.begin(rows);
  if (body) kernels.run(rows, row, x.stride, {w, w + kAhead, kStepBytes, true, true}, body, acc);
  kernels.run(rows, row + body * kernels.x_step, x.stride,
              {w + body * kStepBytes, next, kStepBytes, body == 0, true}, steps - body, acc);
  if (kernels.end) kernels.end();
}

// `tiles` passes, each for its share of the rows, over one K block of the panel after the other.
void pass_blocks(const LinearKernels& kernels, const Linear& linear, const Rows& x, int64_t row0,
                 int64_t rows, int64_t tiles, const char* w, const char* next, float* acc) {
  const int64_t steps = linear.steps();
  // Blocks of equal depth, whole tiles of 16 steps deep.
  const int64_t blocks = (steps + kBlockSteps - 1) / kBlockSteps;
  const int64_t depth = ((steps + blocks - 1) / blocks + 15) / 16 * 16;
  if (kernels.begin) kernels.begin(rows / tiles);
  for (int64_t step = 0; step < steps; step += depth) {
    const int64_t count = std::min(depth, steps - step);
    const char* block = w + step * kStepBytes;
    const char* following = step + count < steps ? block + count * kStepBytes : next;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t begin = rows * t / tiles, end = rows * (t + 1) / tiles;
      // The first two passes fetch one half each of the next block, so that reading memory overlaps with
      // computing in both.
      const PanelStream stream{block, following + (t % 2) * count * 64, 64, step == 0};
      kernels.run(end - begin, x.row(row0 + begin) + step * kernels.x_step, x.stride, stream, count,
                  acc + begin * kPanel);
    }
  }
  if (kernels.end) kernels.end();
}

void add_bias(const Linear& linear, int64_t rows, int64_t panel, float* acc) {
  if (!linear.bias) return;
  const int64_t column = panel * kPanel, columns = std::min(kPanel, linear.out - column);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t c = 0; c < columns; ++c) acc[i * kPanel + c] += linear.bias[column + c];
}

// Float rows of a tile, for dense weights in a model that keeps its rows as blocks.
Rows plain_rows(const Linear& linear, const Rows& x, int64_t row0, int64_t rows) {
  static thread_local std::vector<float> scratch;
  scratch.resize(static_cast<size_t>(kTileRows * linear.in));
  for (int64_t i = 0; i < rows; ++i)
    read_row_blocks(x.form == Rows::Form::digits, reinterpret_cast<const RowBlock*>(x.row(row0 + i)),
                    linear.in, scratch.data() + i * linear.in);
  return {x.isa, reinterpret_cast<const char*>(scratch.data()), linear.in * 4};
}

}  // namespace

void linear_tile(const Linear& linear, const Rows& x, int64_t row0, int64_t rows, int64_t panel,
                 const char* next, float* acc) {
  if (linear.format != Format::dense) {
    const char* w = linear.panel_data(panel);
    quantised_kernel(x.isa)(linear.format, linear.in, w, next ? next : w, x.form == Rows::Form::digits,
                            x.row(row0), x.stride, rows, acc);
    return add_bias(linear, rows, panel, acc);
  }
  if (x.form != Rows::Form::plain)
    return linear_tile(linear, plain_rows(linear, x, row0, rows), 0, rows, panel, next, acc);
  const LinearKernels& kernels = linear_kernels(x.isa, linear.dtype);
  const char* w = linear.panel_data(panel);
  if (!next) next = w;
  // Row tiles of equal height (16 rows as 8 + 8, not 12 + 4): a short tile cannot hide the FMA latency.
  // Matrix tiles are full ones, and what is left of them comes last.
  const int64_t tiles =
      kernels.begin ? rows / kernels.max_rows : (rows + kernels.max_rows - 1) / kernels.max_rows;
  const int64_t even = kernels.begin ? tiles * kernels.max_rows : rows;
  if (tiles > 1) pass_blocks(kernels, linear, x, row0, even, tiles, w, even < rows ? w : next, acc);
  const int64_t done = tiles > 1 ? even : 0;
  for (int64_t i = done; i < rows; i += kernels.max_rows)
    pass_once(kernels, linear, x, row0 + i, std::min(kernels.max_rows, rows - i), w, next, acc + i * kPanel);
  add_bias(linear, rows, panel, acc);
}

LinearTasks::LinearTasks(const Linear& linear, int64_t panels, int64_t rows)
    : rows_(rows), panels_(panels), tiles_((rows + kTileRows - 1) / kTileRows) {
  const int64_t tile_bytes = kTileRows * linear.in * size_of(linear.dtype);
  const int64_t share = (tiles_ + num_threads() - 1) / num_threads();
  block_tiles_ = std::max<int64_t>(1, std::min(kBlockBytes / tile_bytes, share));
}

LinearTasks::Task LinearTasks::operator[](int64_t task) const {
  const int64_t block = task / (block_tiles_ * panels_), first = block * block_tiles_;
  const int64_t tiles = std::min(block_tiles_, tiles_ - first), rest = task - first * panels_;
  const int64_t row0 = (first + rest % tiles) * kTileRows;
  return {row0, std::min(kTileRows, rows_ - row0), rest / tiles};
}

void linear(const Linear& linear, const void* x, int64_t rows, int64_t x_stride, void* y, int64_t y_stride,
            Dtype out_dtype, Dtype x_dtype) {
  if (rows == 0) return;
  const Isa isa = active_isa();
  const RowMath& math = row_math(isa);
  Rows input{isa, static_cast<const char*>(x), x_stride * (linear.dtype == Dtype::float32 ? 4 : 2)};
  std::unique_ptr<char[]> scratch;
  if (linear.format != Format::dense) {
    const bool digits = takes_digits(isa, rows);
    input.form = digits ? Rows::Form::digits : Rows::Form::words;
    input.stride = linear.in / kQuantBlock * static_cast<int64_t>(sizeof(RowBlock));
    scratch.reset(new char[static_cast<size_t>(rows * input.stride)]);
    input.data = scratch.get();
    const auto write = [&](int64_t i) {
      RowBlock* target = reinterpret_cast<RowBlock*>(scratch.get() + i * input.stride);
      if (x_dtype == Dtype::float32)
        return write_row_blocks(isa, digits, static_cast<const float*>(x) + i * x_stride, linear.in, target);
      std::vector<float> wide(static_cast<size_t>(linear.in));
      math.widen(static_cast<const bfloat16*>(x) + i * x_stride, linear.in, wide.data());
      write_row_blocks(isa, digits, wide.data(), linear.in, target);
    };
    if (rows * linear.in < kSerial)
      for (int64_t i = 0; i < rows; ++i) write(i);
    else
      parallel_for(rows, write);
  }
  const bool narrow = Rows::narrow(isa, linear.dtype);
  if (linear.dtype == Dtype::bfloat16 && !(narrow && linear.in % 2 == 0)) {
    const int64_t size = narrow ? 2 : 4;
    input.stride = (linear.in + 1) / 2 * 2 * size;
    scratch.reset(new char[static_cast<size_t>(rows * input.stride)]);
    input.data = scratch.get();
    const auto copy = [&](int64_t i) {
      const bfloat16* source = static_cast<const bfloat16*>(x) + i * x_stride;
      char* target = scratch.get() + i * input.stride;
      std::memset(target + input.stride - 2 * size, 0, static_cast<size_t>(2 * size));
      if (narrow)
        std::memcpy(target, source, static_cast<size_t>(linear.in) * 2);
      else
        math.widen(source, linear.in, reinterpret_cast<float*>(target));
    };
    if (rows * linear.in < kSerial)
      for (int64_t i = 0; i < rows; ++i) copy(i);
    else
      parallel_for(rows, copy);
  }
  linear_into(
      linear, input, rows, nullptr, [&](int64_t row, int64_t column, int64_t columns, const float* values) {
        const int64_t offset = row * y_stride + column;
        if (out_dtype == Dtype::float32)
          std::memcpy(static_cast<float*>(y) + offset, values, static_cast<size_t>(columns) * sizeof(float));
        else
          math.narrow(values, columns, static_cast<bfloat16*>(y) + offset);
      });
}

}  // namespace fastpower
