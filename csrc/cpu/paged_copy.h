// Writing K/V into pages, and copying pages: append_kv and copy_pages of docs/design.md.
//
// Both only move bytes, so they know no dtype. A page (page_size, kv_heads, head_dim) is contiguous; pages
// and layers may have any stride. All strides here are in bytes.
#pragma once

#include <cstdint>

namespace fastpower {

struct AppendKv {
  const char* key;    // (tokens, heads, head_bytes)
  const char* value;  // same shape
  int64_t key_token_stride, key_head_stride, value_token_stride, value_head_stride;
  char* k_cache;  // (num_pages, page_size, heads, head_bytes)
  char* v_cache;
  int64_t k_page_stride, v_page_stride;
  int64_t num_pages, page_size, heads, head_bytes;
  const int64_t* slots;  // (tokens,)
  int64_t tokens;
};

struct CopyPages {
  char* k_cache;  // (layers, num_pages, page_size, token_bytes)
  char* v_cache;
  int64_t k_layer_stride, k_page_stride, v_layer_stride, v_page_stride;
  int64_t layers, num_pages, page_size, token_bytes;
  const int64_t* source;  // (copies,)
  const int64_t* target;
  const int64_t* tokens;
  int64_t copies;
};

// Throw std::out_of_range or std::invalid_argument, naming the entry, unless every slot is -1 or a distinct
// slot of the cache.
void check_slots(const int64_t* slots, int64_t tokens, int64_t num_pages, int64_t page_size);
// The same unless pages exist, tokens lie in [0, page_size], targets are distinct and no target is a source.
void check_copies(const int64_t* source, const int64_t* target, const int64_t* tokens, int64_t copies,
                  int64_t num_pages, int64_t page_size);

// Check first: nothing is written when they throw.
void append_kv(const AppendKv& a);
void copy_pages(const CopyPages& c);

}  // namespace fastpower
