#include "cpu/sampling/pool_rows.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/parallel.h"

namespace fastpower {
namespace {

constexpr float kNaNf = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

// Groups are worked on as many at a time as have so many logits: what the first pass has read, the second
// finds in the cache.
constexpr int64_t kEntriesPerWave = 1 << 19;
constexpr int64_t kEntriesPerTask = 1 << 14;

void check_starts(const int64_t* starts, int64_t groups, int64_t rows) {
  for (int64_t g = 0; g <= groups; ++g) {
    const bool ends = (g > 0 || starts[g] == 0) && (g < groups || starts[g] == rows);
    if (ends && (g == 0 || starts[g] > starts[g - 1])) continue;
    throw std::invalid_argument("pool_rows: starts[" + std::to_string(g) + "] must be risen from 0 to " +
                                std::to_string(rows) + ", every group with a row at least, got " +
                                std::to_string(starts[g]));
  }
}

// What a call works with; the calling thread keeps it, as with sample_tokens.
struct Memory {
  std::vector<double> rows, groups;  // partials of blocks
  std::vector<float> m, l;           // log-sum-exp of each row in two parts
};

Memory& memory() {
  thread_local Memory mine;
  return mine;
}

// fn(row, block) for every block of rows first .. end, several blocks a task where they are small.
template <class Block>
void for_blocks(int64_t first, int64_t end, int64_t blocks, int64_t entries, const Block& fn) {
  const int64_t total = (end - first) * blocks, step = std::max<int64_t>(1, kEntriesPerTask / entries);
  parallel_runs((total + step - 1) / step, [&](const RunTask& run) {
    const FlushSubnormals flush;
    for (int64_t i = run.task * step; i < std::min(total, (run.task + 1) * step); ++i)
      fn(first + i / blocks, i % blocks);
  });
}

}  // namespace

void pool_rows(const Logits& logits, const int64_t* starts, int64_t groups, float* pooled, float* log_mass,
               int32_t* status) {
  check_starts(starts, groups, logits.rows);
  const int64_t blocks = logits.blocks(), vocab = logits.vocab;
  const int64_t entries = std::min<int64_t>(vocab, kBlock);
  const Logits sums{pooled, Dtype::float32, groups, vocab, vocab};
  Memory& own = memory();
  own.rows.resize(logits.rows * blocks * kSums);
  own.groups.resize(groups * blocks * kSums);
  own.m.resize(logits.rows);
  own.l.resize(logits.rows);
  const auto merge = [&](const std::vector<double>& partials, int64_t row) {
    return merge_row(&partials[row * blocks * kSums], blocks, kSums, nullptr, 0, nullptr);
  };
  for (int64_t first = 0, end; first < groups; first = end) {
    for (end = first + 1; end < groups; ++end)
      if ((starts[end + 1] - starts[first]) * vocab > kEntriesPerWave) break;
    for_blocks(starts[first], starts[end], blocks, entries, [&](int64_t row, int64_t b) {
      block_partial(logits, row, b, nullptr, 0, &own.rows[(row * blocks + b) * kSums], -1, nullptr);
    });
    for (int64_t g = first; g < end; ++g) {
      int32_t found = 0;
      for (int64_t row = starts[g]; row < starts[g + 1]; ++row) {
        const RowStatistics r = merge(own.rows, row);
        own.m[row] = static_cast<float>(r.m);
        own.l[row] = static_cast<float>(r.log_s);
        found |= static_cast<int32_t>(r.status);
      }
      status[g] = found;
    }
    for_blocks(first, end, blocks, entries, [&](int64_t g, int64_t b) {
      float* const out = pooled + g * vocab + b * kBlock;
      const int n = logits.block_size(b), count = static_cast<int>(starts[g + 1] - starts[g]);
      if (status[g] != 0) {
        std::fill_n(out, n, kNaNf);
        return;
      }
      thread_local std::vector<const void*> rows;
      rows.resize(count);
      for (int k = 0; k < count; ++k) rows[k] = logits.entries(starts[g] + k, b * kBlock);
      block_kernels(logits.dtype).pool(rows.data(), &own.m[starts[g]], &own.l[starts[g]], count, n, out);
      block_partial(sums, g, b, nullptr, 0, &own.groups[(g * blocks + b) * kSums], -1, nullptr);
    });
    for (int64_t g = first; g < end; ++g) {
      log_mass[g] = kNaNf;
      if (status[g] != 0) continue;
      const RowStatistics r = merge(own.groups, g);
      // Rounding must not give a product of distributions more mass than a distribution has.
      log_mass[g] = r.status == Status::masked ? -kInf : std::min(static_cast<float>(r.lse), 0.0f);
    }
  }
}

}  // namespace fastpower
