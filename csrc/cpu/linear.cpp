#include "cpu/linear.h"

#include <algorithm>
#include <cstring>

#include "cpu/linear_kernels.h"
#include "cpu/parallel.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastpower {
namespace {

constexpr int64_t kBlockSteps =
    512;  // K block: 64 KiB of a panel, read from L2 by every row tile after the first

// Weights are read once per decode step, so each 4 KiB page would cost a TLB miss per step.
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

}  // namespace

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

void unpack_linear(const Linear& linear, void* weight) {
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

Rows::Rows(const void* x, int64_t rows, int64_t in, int64_t row_stride, Dtype dtype)
    : isa_(active_isa()),
      data_(static_cast<const char*>(x)),
      stride_(row_stride * (dtype == Dtype::float32 ? 4 : 2)) {
  if (dtype == Dtype::float32) return;
  if (isa_ == Isa::avx512_bf16 && in % 2 == 0) return;
  const bfloat16* source = static_cast<const bfloat16*>(x);
  const int64_t padded = (in + 1) / 2 * 2;
  const bool keep = isa_ == Isa::avx512_bf16;
  stride_ = padded * (keep ? 2 : 4);
  scratch_.reset(new char[static_cast<size_t>(rows * stride_)]);
  for (int64_t i = 0; i < rows; ++i) {
    char* target = scratch_.get() + i * stride_;
    std::memset(target + (padded - 2) * (keep ? 2 : 4), 0, keep ? 4 : 8);
    if (keep)
      std::memcpy(target, source + i * row_stride, static_cast<size_t>(in) * 2);
    else
      for (int64_t k = 0; k < in; ++k)
        reinterpret_cast<float*>(target)[k] = to_float(source[i * row_stride + k]);
  }
  data_ = scratch_.get();
}

void linear_tile(const Linear& linear, const Rows& x, int64_t row0, int64_t rows, int64_t panel, float* acc) {
  const LinearKernels& kernels = linear_kernels(x.isa(), linear.dtype);
  const int64_t steps = linear.steps();
  const char* w = static_cast<const char*>(linear.panels) + panel * linear.panel_bytes();
  std::memset(acc, 0, static_cast<size_t>(rows * kPanel) * sizeof(float));
  // Row tiles of equal height (16 rows as 8 + 8, not 12 + 4): a short tile cannot hide the FMA latency.
  const int64_t tiles = (rows + kernels.max_rows - 1) / kernels.max_rows;
  for (int64_t step = 0; step < steps; step += kBlockSteps) {
    const int64_t count = std::min(kBlockSteps, steps - step);
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t begin = rows * t / tiles, end = rows * (t + 1) / tiles;
      kernels.run[end - begin](x.row(row0 + begin) + step * kernels.x_step, x.stride(), w + step * kPanel * 4,
                               count, acc + begin * kPanel);
    }
  }
}

void linear(const Linear& linear, const void* x, int64_t rows, int64_t x_stride, void* y, int64_t y_stride,
            Dtype out_dtype) {
  if (rows == 0) return;
  const Rows input(x, rows, linear.in, x_stride, linear.dtype);
  const int64_t panels = linear.panel_count();
  const int64_t row_tiles = (rows + kTileRows - 1) / kTileRows;
  // Runs of panels long enough to stream, short enough to balance threads of unequal speed.
  const int64_t run = std::max<int64_t>(1, panels / (8 * num_threads()));
  const int64_t runs = (panels + run - 1) / run;
  parallel_for(runs * row_tiles, [&](int64_t task) {
    alignas(64) float acc[kTileRows * kPanel];
    const int64_t row0 = (task / runs) * kTileRows, count = std::min(kTileRows, rows - row0);
    const int64_t begin = (task % runs) * run, end = std::min(panels, begin + run);
    for (int64_t panel = begin; panel < end; ++panel) {
      linear_tile(linear, input, row0, count, panel, acc);
      const int64_t column = panel * kPanel, columns = std::min(kPanel, linear.out - column);
      for (int64_t i = 0; i < count; ++i) {
        float* line = acc + i * kPanel;
        if (linear.bias)
          for (int64_t c = 0; c < columns; ++c) line[c] += linear.bias[column + c];
        const int64_t offset = (row0 + i) * y_stride + column;
        if (out_dtype == Dtype::float32)
          std::memcpy(static_cast<float*>(y) + offset, line, static_cast<size_t>(columns) * sizeof(float));
        else
          for (int64_t c = 0; c < columns; ++c) from_float(line[c], static_cast<bfloat16*>(y) + offset + c);
      }
    }
  });
}

}  // namespace fastpower
