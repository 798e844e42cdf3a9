// Blocks of a row merged to the statistics of the row. With d = m_b - m, m the largest reference of a block:
//
//   s = sum_b s_b e^d      t = sum_b e^d (t_b + d s_b)      s_e = sum_b s_{e,b} e^{e d}
//   lse = m + log s        entropy = log s - t / s          logz_e = log s_e - e log s
//
// Blocks are merged in index order, in double, whatever computed them: a row's bits depend on the row alone.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"
#include "cpu/sampling/block_statistics.h"

namespace fastpower {

// Bits of fastpower.kernels.Status.
enum class Status : int32_t { ok = 0, nan = 1, masked = 2, exhausted = 4 };

struct Logits {
  const void* data;
  Dtype dtype;
  int64_t rows, vocab, stride;  // stride between rows, in elements

  int64_t blocks() const { return (vocab + kBlock - 1) / kBlock; }
  int block_size(int64_t block) const;
  const void* entries(int64_t row, int64_t token) const;  // from that token on
  float at(int64_t row, int64_t token) const;
};

// Statistics of one block: m, s, t, top, then s_e of every exponent, relative to m or to top.
constexpr int64_t kSums = 4;
inline int64_t partial_size(int64_t exponents) { return kSums + exponents; }
inline int64_t reference_of(float exponent) { return squarings(exponent) < 0 ? 3 : 0; }

// quarters: see BlockKernels; drawn is -1 for none.
void block_partial(const Logits& logits, int64_t row, int64_t block, const float* exponents, int64_t count,
                   double* partial, int64_t drawn, Quarter* quarters);

struct RowStatistics {
  Status status;
  double m, log_s, lse, entropy;  // lse = m + log_s; NaN unless status is ok
};

// partials: `blocks` partials, `stride` apart; logz receives one value per exponent.
RowStatistics merge_row(const double* partials, int64_t blocks, int64_t stride, const float* exponents,
                        int64_t count, float* logz);

// Argument checks shared by the operators; throw std::invalid_argument naming op, argument, index and value.
void check_positive(const char* op, const char* name, const float* values, int64_t n);
void check_range(const char* op, const char* name, const int64_t* values, int64_t n, int64_t low,
                 int64_t end);

}  // namespace fastpower
