// Causal attention of ragged queries over paged keys and values: paged_attention of docs/design.md.
//
// A query row (token, head) has scores s_j against the keys it sees. Keys are cut in splits of kSplit
// positions of their sequence. Each split gives m = max s_j, l = sum e^(s_j - m), a = sum e^(s_j - m) v_j,
// and splits are folded in order into (M, L, A) relative to the running maximum; the row is A / L. Every one
// of these numbers is computed by the same operations in the same order whatever else runs: the other queries
// of a tile only share the loads of K and V. So batching, chunking of a prefill, sharing of a prefix and the
// number of threads do not change a bit.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"

namespace fastpower {

struct PagedAttention {
  const void* query;    // (tokens, q_heads, head_dim), last stride 1
  const void* k_cache;  // (num_pages, page_size, kv_heads, head_dim), pages contiguous
  const void* v_cache;
  void* out;  // (tokens, q_heads, head_dim), contiguous
  Dtype dtype;
  int64_t query_token_stride, query_head_stride, k_page_stride, v_page_stride;  // in elements
  int64_t tokens, q_heads, kv_heads, head_dim, num_pages, page_size;
  const int32_t* page_table;  // (sequences, max_pages), row stride table_stride
  int64_t sequences, max_pages, table_stride;
  const int32_t* query_starts;   // (sequences + 1,)
  const int32_t* lengths;        // (sequences,)
  const int32_t* shared_starts;  // (groups + 1,) or null
  const int32_t* shared_pages;   // (groups,)
  int64_t groups;
  float scale, softcap;
  int64_t window;
  // (tokens,) or null: bit j says whether a query sees new token j of its sequence, of at most kMaxTree.
  const int64_t* ancestors = nullptr;
};

constexpr int64_t kMaxTree = 64;

// Throws std::out_of_range or std::invalid_argument, naming the entry, unless the integer tensors describe
// sequences whose pages exist and groups that share what they claim.
void check_attention(const PagedAttention& a);
// Checks first: nothing is written when it throws.
void paged_attention(const PagedAttention& a);

}  // namespace fastpower
