#include "cpu/paged_copy.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/parallel.h"

namespace fastpower {
namespace {

constexpr int64_t kTaskBytes = 128 << 10;  // less than this is not worth waking a thread for

// Marks of small integers, cleared by unmarking: cost follows the number of marks, not the size of the cache.
class Marks {
 public:
  explicit Marks(int64_t limit) {
    if (static_cast<int64_t>(words_.size()) * 64 < limit) words_.resize((limit + 63) / 64);
  }
  ~Marks() {
    for (int64_t i : set_) words_[i >> 6] = 0;
  }
  bool has(int64_t i) const { return words_[i >> 6] >> (i & 63) & 1; }
  void add(int64_t i) {
    words_[i >> 6] |= uint64_t{1} << (i & 63);
    set_.push_back(i);
  }

 private:
  static thread_local std::vector<uint64_t> words_;  // all zero between uses
  std::vector<int64_t> set_;
};
thread_local std::vector<uint64_t> Marks::words_;

std::string entry(const char* name, int64_t i, int64_t value) {
  return std::string(name) + "[" + std::to_string(i) + "] is " + std::to_string(value);
}

void check_page(const char* name, int64_t i, int64_t page, int64_t num_pages) {
  if (page < 0 || page >= num_pages)
    throw std::out_of_range("copy_pages: " + entry(name, i, page) + ", but the cache has pages 0 to " +
                            std::to_string(num_pages - 1));
}

}  // namespace

void check_slots(const int64_t* slots, int64_t tokens, int64_t num_pages, int64_t page_size) {
  const int64_t num_slots = num_pages * page_size;
  Marks taken(num_slots);
  for (int64_t i = 0; i < tokens; ++i) {
    const int64_t slot = slots[i];
    if (slot == -1) continue;
    if (slot < 0 || slot >= num_slots)
      throw std::out_of_range("append_kv: " + entry("slots", i, slot) + ", but the cache has slots 0 to " +
                              std::to_string(num_slots - 1) + " (-1 drops a token)");
    if (taken.has(slot))
      throw std::invalid_argument("append_kv: " + entry("slots", i, slot) +
                                  ", as is an earlier entry; every token needs a slot of its own");
    taken.add(slot);
  }
}

void check_copies(const int64_t* source, const int64_t* target, const int64_t* tokens, int64_t copies,
                  int64_t num_pages, int64_t page_size) {
  Marks written(num_pages);
  for (int64_t i = 0; i < copies; ++i) {
    check_page("source", i, source[i], num_pages);
    check_page("target", i, target[i], num_pages);
    if (tokens[i] < 0 || tokens[i] > page_size)
      throw std::out_of_range("copy_pages: " + entry("tokens", i, tokens[i]) + ", but a page holds 0 to " +
                              std::to_string(page_size) + " tokens");
    if (written.has(target[i]))
      throw std::invalid_argument("copy_pages: " + entry("target", i, target[i]) +
                                  ", as is an earlier entry; every copy needs a target page of its own");
    written.add(target[i]);
  }
  for (int64_t i = 0; i < copies; ++i)
    if (written.has(source[i]))
      throw std::invalid_argument("copy_pages: " + entry("source", i, source[i]) +
                                  " is a target too; a plan must not read pages it writes");
}

void append_kv(const AppendKv& a) {
  check_slots(a.slots, a.tokens, a.num_pages, a.page_size);
  const int64_t token_bytes = a.heads * a.head_bytes;
  const bool dense = a.key_head_stride == a.head_bytes && a.value_head_stride == a.head_bytes;
  const auto write = [&](int64_t i) {
    const int64_t slot = a.slots[i];
    if (slot < 0) return;
    const int64_t page = slot / a.page_size, offset = slot % a.page_size;
    char* k = a.k_cache + page * a.k_page_stride + offset * token_bytes;
    char* v = a.v_cache + page * a.v_page_stride + offset * token_bytes;
    const char* key = a.key + i * a.key_token_stride;
    const char* value = a.value + i * a.value_token_stride;
    if (dense) {
      std::memcpy(k, key, token_bytes);
      std::memcpy(v, value, token_bytes);
      return;
    }
    for (int64_t h = 0; h < a.heads; ++h) {
      std::memcpy(k + h * a.head_bytes, key + h * a.key_head_stride, a.head_bytes);
      std::memcpy(v + h * a.head_bytes, value + h * a.value_head_stride, a.head_bytes);
    }
  };
  const int64_t per_task = std::max<int64_t>(1, kTaskBytes / std::max<int64_t>(1, 2 * token_bytes));
  parallel_for((a.tokens + per_task - 1) / per_task, [&](int64_t task) {
    const int64_t end = std::min(a.tokens, (task + 1) * per_task);
    for (int64_t i = task * per_task; i < end; ++i) write(i);
  });
}

void copy_pages(const CopyPages& c) {
  check_copies(c.source, c.target, c.tokens, c.copies, c.num_pages, c.page_size);
  const auto copy = [&](int64_t layer, int64_t i) {
    const int64_t bytes = c.tokens[i] * c.token_bytes;
    char* k = c.k_cache + layer * c.k_layer_stride;
    char* v = c.v_cache + layer * c.v_layer_stride;
    std::memcpy(k + c.target[i] * c.k_page_stride, k + c.source[i] * c.k_page_stride, bytes);
    std::memcpy(v + c.target[i] * c.v_page_stride, v + c.source[i] * c.v_page_stride, bytes);
  };
  int64_t copied = 0;  // tokens per layer
  for (int64_t i = 0; i < c.copies; ++i) copied += c.tokens[i];
  if (copied == 0 || c.layers == 0) return;
  const int64_t pieces = c.layers * c.copies;
  const int64_t bytes = 2 * copied * c.token_bytes * c.layers;
  const int64_t per_task = std::max<int64_t>(1, pieces * kTaskBytes / std::max<int64_t>(1, bytes));
  parallel_for((pieces + per_task - 1) / per_task, [&](int64_t task) {
    const int64_t end = std::min(pieces, (task + 1) * per_task);
    for (int64_t p = task * per_task; p < end; ++p) copy(p / c.copies, p % c.copies);
  });
}

}  // namespace fastpower
