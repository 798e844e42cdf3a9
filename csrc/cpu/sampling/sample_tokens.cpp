#include "cpu/sampling/sample_tokens.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/philox.h"

namespace fastpower {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr float kNaNf = std::numeric_limits<float>::quiet_NaN();

// First index whose running sum exceeds target; the last index with mass if rounding leaves none. `before`
// receives the running sum in front of the index.
template <class T>
int64_t choose(const T* mass, int64_t n, double target, double running, double* before) {
  int64_t last = 0;
  double before_last = running;
  for (int64_t i = 0; i < n; ++i) {
    if (!(mass[i] > 0)) continue;
    last = i;
    before_last = running;
    running += mass[i];
    if (running > target) break;
  }
  if (before) *before = before_last;
  return last;
}

// e^{alpha (z - m)} of some entries of a row.
struct Weights {
  int64_t first = -1;  // the token of weight[0]
  int n = 0;           // a multiple of kChunk
  double m, total;
  alignas(64) float weight[kBlock];
  double chunk[kBlock / kChunk];

  // A quarter of a block, which has mass relative to `reference`; its logits are at most 4.2 above that.
  void compute(const Logits& logits, int64_t row, int64_t token, float reference, float alpha) {
    const int size = static_cast<int>(std::min<int64_t>(kQuarter, logits.vocab - token));
    const void* z = logits.entries(row, token);
    const BlockKernels& kernels = block_kernels(logits.dtype);
    weigh(kernels, z, token, size, reference, alpha);
    // The mass was summed relative to other references, too; relative to the last one all may count as 0.
    if (total == 0) weigh(kernels, z, token, size, kernels.largest(z, size), alpha);
  }

  // A block without its entry `without`; m is -inf if nothing is left.
  void compute_without(const Logits& logits, int64_t row, int64_t block, int64_t without, float alpha) {
    const int size = logits.block_size(block);
    block_kernels(logits.dtype).load(logits.entries(row, block * kBlock), size, weight);
    weight[without] = -std::numeric_limits<float>::infinity();
    const BlockKernels& kernels = block_kernels(Dtype::float32);
    const float top = kernels.largest(weight, size);
    m = top;
    total = 0;
    if (top != -kInf) weigh(kernels, weight, block * kBlock, size, top, alpha);
  }

  void weigh(const BlockKernels& kernels, const void* z, int64_t token, int size, float reference,
             float alpha) {
    kernels.weigh(z, size, reference, alpha, weight, chunk);
    first = token;
    n = (size + kChunk - 1) / kChunk * kChunk;
    m = reference;
    total = 0;
    for (int c = 0; c < n / kChunk; ++c) total += chunk[c];
  }

  int64_t draw(double u) const {
    double before;
    const int64_t c = choose(chunk, n / kChunk, u * total, 0.0, &before);
    const int64_t i = choose(weight + c * kChunk, kChunk, u * total, before, nullptr);
    return first + c * kChunk + i;
  }
};

// What the draws of a row work with; kept by every thread, since small rows come by the thousand.
struct Scratch {
  Weights whole, rest;  // of a quarter as it is, of the excluded token's block without it
  std::vector<double> mass, rest_mass;
};

Scratch& scratch() {
  thread_local Scratch mine;
  return mine;
}

// All draws of one row.
class RowDraws {
 public:
  // mass_index: where s_alpha stands in a block's partial; quarters: those of alpha, kQuarters per block.
  RowDraws(const Logits& logits, int64_t row, float alpha, const double* partials, int64_t partial,
           int64_t mass_index, const Quarter* quarters)
      : logits_(logits),
        row_(row),
        alpha_(alpha),
        partials_(partials),
        partial_(partial),
        mass_index_(mass_index),
        reference_(reference_of(alpha)),
        quarters_(quarters),
        blocks_(logits.blocks()),
        scratch_(scratch()) {
    scratch_.whole.first = -1;
    scratch_.mass.resize(blocks_);
    scratch_.rest_mass.resize(blocks_);
    double m = -kInf;
    for (int64_t b = 0; b < blocks_; ++b) m = std::max(m, reference(b));
    total_ = weigh_blocks(m, -1, scratch_.mass.data());
  }

  int64_t draw(uint64_t key, int64_t position, int64_t exclude) {
    const auto word = philox4x32(key, {static_cast<uint32_t>(position), 0, 0, 0});
    const double u0 = uniform32(word[0]), u1 = uniform32(word[1]);
    if (exclude < 0) return from_whole(choose(scratch_.mass.data(), blocks_, u0 * total_, 0.0, nullptr), u1);
    // Everything relative to the largest logit that is left: it may be far below the excluded one.
    const int64_t home = exclude / kBlock;
    Weights& rest = scratch_.rest;
    rest.compute_without(logits_, row_, home, exclude % kBlock, alpha_);
    double m = rest.m;
    for (int64_t b = 0; b < blocks_; ++b)
      if (b != home) m = std::max(m, reference(b));
    if (m == -kInf) return -1;
    const double total = weigh_blocks(m, home, scratch_.rest_mass.data());
    const int64_t block = choose(scratch_.rest_mass.data(), blocks_, u0 * total, 0.0, nullptr);
    return block == home ? rest.draw(u1) : from_whole(block, u1);
  }

 private:
  // What the block's masses are relative to.
  double reference(int64_t block) const { return partials_[block * partial_ + reference_]; }

  int64_t from_whole(int64_t block, double u) {
    double mass[kQuarters], total = 0, before;
    for (int k = 0; k < kQuarters; ++k) {
      const Quarter& quarter = quarters_[block * kQuarters + k];
      mass[k] = relative(quarter.mass, quarter.m - reference(block));
      total += mass[k];
    }
    const int64_t k = choose(mass, kQuarters, u * total, 0.0, &before), first = block * kBlock + k * kQuarter;
    Weights& whole = scratch_.whole;
    if (whole.first != first)
      whole.compute(logits_, row_, first, static_cast<float>(quarters_[block * kQuarters + k].m), alpha_);
    return whole.draw((u * total - before) / mass[k]);
  }

  // A mass relative to a logit that is smaller by d.
  double relative(double mass, double d) const {
    return mass == 0 || d == 0 ? mass : mass * std::exp(static_cast<double>(alpha_) * d);
  }

  // Block masses relative to m, `home` taken from the rest; returns their sum.
  double weigh_blocks(double m, int64_t home, double* mass) const {
    const Weights& rest = scratch_.rest;
    double total = 0;
    for (int64_t b = 0; b < blocks_; ++b) {
      mass[b] = b == home ? relative(rest.total, rest.m - m)
                          : relative(partials_[b * partial_ + mass_index_], reference(b) - m);
      total += mass[b];
    }
    return total;
  }

  const Logits& logits_;
  int64_t row_;
  float alpha_;
  const double* partials_;
  int64_t partial_, mass_index_, reference_;
  const Quarter* quarters_;
  int64_t blocks_;
  Scratch& scratch_;
  double total_;
};

// What a call works with besides its outputs. The calling thread keeps it, so that only a call larger than
// all before it allocates: an engine's decode steps are all alike.
struct CallMemory {
  std::vector<int64_t> start, order, mass;
  std::vector<float> powers;
  std::vector<double> partials;
  std::vector<Quarter> quarters;

  // `n` counters, all 0.
  std::atomic<int64_t>* counters(int64_t n) {
    if (n > counters_room_) {
      counters_.reset(new std::atomic<int64_t>[static_cast<size_t>(n)]);
      counters_room_ = n;
    }
    for (int64_t i = 0; i < n; ++i) counters_[i].store(0, std::memory_order_relaxed);
    return counters_.get();
  }

 private:
  std::unique_ptr<std::atomic<int64_t>[]> counters_;
  int64_t counters_room_ = 0;
};

CallMemory& call_memory() {
  thread_local CallMemory mine;
  return mine;
}

// Calls block_fn for every block, and row_fn for a row once all its blocks are done. A task is some rows or
// some blocks of one row, and a thread takes neighbouring tasks, since a block fetches ahead into the next
// one. Every block is computed alone and merged in order, so bits do not depend on the cut.
template <class Block, class Row>
void for_rows(const Logits& logits, const Block& block_fn, const Row& row_fn) {
  constexpr int64_t kEntriesPerTask = 1 << 15, kBlocksPerTask = kEntriesPerTask / kBlock;
  constexpr int64_t kLeastPerRow = 512;  // as many entries cost what merging a row and drawing from it do
  const int64_t blocks = logits.blocks(), parts = (blocks + kBlocksPerTask - 1) / kBlocksPerTask;
  const int64_t step = std::max<int64_t>(1, kEntriesPerTask / std::max(logits.vocab, kLeastPerRow));
  const int64_t runs = (logits.rows + step - 1) / step;
  std::atomic<int64_t>* const done = call_memory().counters(parts > 1 ? logits.rows : 0);
  parallel_runs(runs * parts, [&](const RunTask& run) {
    const FlushSubnormals flush;
    const int64_t part = run.task % parts, first = run.task / parts * step;
    for (int64_t row = first; row < std::min(logits.rows, first + step); ++row) {
      for (int64_t b = blocks * part / parts; b < blocks * (part + 1) / parts; ++b) block_fn(row, b);
      if (parts == 1 || done[row].fetch_add(1, std::memory_order_acq_rel) == parts - 1) row_fn(row);
    }
  });
}

// Draws grouped by row: those of row r are order[start[r] .. start[r + 1]).
struct Grouped {
  std::vector<int64_t>&start, &order;

  Grouped(int64_t rows, int64_t draws, const int64_t* row_of, CallMemory* memory)
      : start(memory->start), order(memory->order) {
    start.assign(rows + 2, 0);
    order.resize(draws);
    for (int64_t d = 0; d < draws; ++d) ++start[row_of[d] + 2];
    for (int64_t r = 0; r < rows; ++r) start[r + 2] += start[r + 1];
    for (int64_t d = 0; d < draws; ++d) order[start[row_of[d] + 1]++] = d;
  }
  int64_t count(int64_t row) const { return start[row + 1] - start[row]; }
  bool any(int64_t row) const { return count(row) > 0; }
};

}  // namespace

void sample_tokens(const Logits& logits, const float* alpha, const float* exponents, int64_t exponent_count,
                   int64_t draws, const int64_t* rows, const int64_t* keys, const int64_t* positions,
                   const int64_t* exclude, int64_t* token, float* logp, float* logz, float* entropy,
                   int32_t* status) {
  check_positive("sample_tokens", "alpha", alpha, logits.rows);
  check_positive("sample_tokens", "exponents", exponents, exponent_count);
  check_range("sample_tokens", "rows", rows, draws, 0, logits.rows);
  if (exclude) check_range("sample_tokens", "exclude", exclude, draws, -1, logits.vocab);

  CallMemory& memory = call_memory();
  const Grouped grouped(logits.rows, draws, rows, &memory);
  // A row needs the exponents asked for and, for its draws, its alpha: s_alpha stands last or where alpha was
  // asked for.
  const int64_t slots = exponent_count + 1, partial = partial_size(slots), blocks = logits.blocks();
  std::vector<float>& powers = memory.powers;
  std::vector<int64_t>& mass = memory.mass;
  powers.resize(logits.rows * slots);
  mass.resize(logits.rows);
  for (int64_t row = 0; row < logits.rows; ++row) {
    float* mine = &powers[row * slots];
    std::copy_n(exponents, exponent_count, mine);
    mine[exponent_count] = alpha[row];
    mass[row] = std::find(mine, mine + exponent_count, alpha[row]) - mine;
  }
  std::vector<double>& partials = memory.partials;
  std::vector<Quarter>& quarters = memory.quarters;
  partials.resize(logits.rows * blocks * partial);
  quarters.assign(logits.rows * blocks * kQuarters, Quarter());  // a short block leaves some as they are

  const auto block_fn = [&](int64_t row, int64_t b) {
    const bool any = grouped.any(row), alpha_too = any && mass[row] == exponent_count;
    const int64_t block = row * blocks + b;
    block_partial(logits, row, b, &powers[row * slots], exponent_count + alpha_too,
                  &partials[block * partial], any ? mass[row] : -1, &quarters[block * kQuarters]);
  };
  const auto row_fn = [&](int64_t row) {
    const double* mine = &partials[row * blocks * partial];
    const RowStatistics r =
        merge_row(mine, blocks, partial, exponents, exponent_count, logz + row * exponent_count);
    entropy[row] = static_cast<float>(r.entropy);
    status[row] = static_cast<int32_t>(r.status);
    if (!grouped.any(row)) return;
    const int64_t *first = &grouped.order[grouped.start[row]], *end = first + grouped.count(row);
    if (r.status != Status::ok) {
      for (; first != end; ++first) {
        token[*first] = -1;
        logp[*first] = kNaNf;
      }
      return;
    }
    RowDraws row_draws(logits, row, alpha[row], mine, partial, kSums + mass[row],
                       &quarters[row * blocks * kQuarters]);
    for (; first != end; ++first) {
      const int64_t d = *first;
      token[d] = row_draws.draw(static_cast<uint64_t>(keys[d]), positions[d], exclude ? exclude[d] : -1);
      logp[d] = token[d] < 0 ? kNaNf : static_cast<float>(std::min(logits.at(row, token[d]) - r.lse, 0.0));
      if (token[d] < 0) status[row] |= static_cast<int32_t>(Status::exhausted);
    }
  };
  for_rows(logits, block_fn, row_fn);
}

void score_tokens(const Logits& logits, const int64_t* tokens, const float* exponents, int64_t exponent_count,
                  float* logp, float* logz, float* entropy, int32_t* status) {
  check_positive("score_tokens", "exponents", exponents, exponent_count);
  check_range("score_tokens", "tokens", tokens, logits.rows, 0, logits.vocab);
  const int64_t partial = partial_size(exponent_count), blocks = logits.blocks();
  std::vector<double>& partials = call_memory().partials;
  partials.resize(logits.rows * blocks * partial);
  for_rows(
      logits,
      [&](int64_t row, int64_t b) {
        block_partial(logits, row, b, exponents, exponent_count, &partials[(row * blocks + b) * partial], -1,
                      nullptr);
      },
      [&](int64_t row) {
        const RowStatistics r = merge_row(&partials[row * blocks * partial], blocks, partial, exponents,
                                          exponent_count, logz + row * exponent_count);
        logp[row] = static_cast<float>(std::min(logits.at(row, tokens[row]) - r.lse, 0.0));
        entropy[row] = static_cast<float>(r.entropy);
        status[row] = static_cast<int32_t>(r.status);
      });
}

}  // namespace fastpower
