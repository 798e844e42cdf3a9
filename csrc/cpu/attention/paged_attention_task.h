// What the planner of paged_attention.cpp asks of a kernel variant (one per instruction set).
#pragma once

#include <cstdint>

#include "cpu/attention/paged_attention.h"

namespace fastpower {

constexpr int kSplit = 64;  // keys per split: part of the definition of a result, like the order of its sums

struct AttentionCall {
  const PagedAttention* a;
  const int32_t* position;      // of each query token in its sequence
  const int64_t* record_start;  // first record of each query token
  float* records;               // (records, q_heads, record_size)
  int64_t record_size;          // a row's A (padded head_dim), M, L, padding

  float* record(int64_t token, int64_t index, int64_t head) const {
    return records + ((record_start[token] + index) * a->q_heads + head) * record_size;
  }
};

// Query tokens [token, token + tokens), all heads that read key/value heads [head_begin, head_end), over
// splits [begin, end) of the pages of `sequence`. `whole`: nothing else contributes, write the output.
// Otherwise `first`: fold the splits and write record 0; else write each split to record (split -
// record_base).
struct AttentionTask {
  int64_t token, tokens;
  int64_t sequence, head_begin, head_end;
  int64_t begin, end;
  int64_t record_base;
  bool first, whole;
};

struct AttentionKernel {
  // `following`: what the same thread is likely to run next, so that its first keys can be fetched; or null.
  void (*run)(const AttentionCall&, const AttentionTask&, const AttentionTask* following);
  // Folds `records` records of each token in order and writes the output.
  void (*fold)(const AttentionCall&, int64_t token, int64_t tokens, int64_t records);
};

// Working memory of the calling thread, aligned to 64 bytes, valid until its next call.
float* attention_scratch(int64_t floats);

inline int64_t padded_dim(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }

namespace portable {
extern const AttentionKernel attention_kernel;
}
namespace avx2 {
extern const AttentionKernel attention_kernel;
}
namespace avx512 {
extern const AttentionKernel attention_kernel;
}
namespace amx {
extern const AttentionKernel attention_kernel;
}

}  // namespace fastpower
