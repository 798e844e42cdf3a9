// Full pages whose tokens are known, kept after their sequence is gone so that another one can begin with
// them.
//
// A node is one page; the path from the root to it spells the tokens of the page and of everything before it,
// which is what K/V depend on. The tree holds one reference on each page. When pages run short, leaves that
// nobody else holds are given back, least recently used first, and a parent after its last child: a cached
// prefix loses its end first.
#pragma once

#include <cstdint>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "books/page_pool.h"

namespace fastpower {

class PrefixTree {
 public:
  PrefixTree(PagePool* pool, int64_t page_size)
      : pool_(pool), page_size_(page_size), cached_(pool->num_pages(), false) {}

  // The longest cached prefix of tokens (n): writes its pages to *pages, without a reference, and counts as a
  // use.
  void match(const int32_t* tokens, int64_t n, std::vector<int32_t>* pages);

  // pages[i] holds tokens [i, i + 1) * page_size, i < n. What is cached already keeps its page; the rest is
  // added, each with a reference. Counts as a use. All or nothing. Throws std::invalid_argument if a page is
  // cached with other tokens.
  void insert(const int32_t* tokens, const int32_t* pages, int64_t n);

  // At most `most` pages that can be given back, as nodes in the order in which to evict() them. Changes
  // nothing.
  std::vector<int32_t> victims(int64_t most) const;
  void evict(const std::vector<int32_t>& victims) noexcept;
  void clear() noexcept;      // everything; sequences that share pages keep theirs
  int64_t evictable() const;  // how many pages victims() can find

  int64_t size() const { return static_cast<int64_t>(nodes_.size() - free_nodes_.size()); }  // pages held
  bool holds(int32_t page) const { return cached_[page]; }
  void check() const;  // throws InconsistentBooks

 private:
  static constexpr int32_t kRoot = -1, kNone = -2;
  struct Node {
    int32_t page = -1;
    int32_t parent = kNone;  // kNone: not in use
    int32_t children = 0;
    uint64_t used = 0;  // clock of the last match or insert that went through; never above the parent's
    uint64_t hash = 0;
  };
  using Leaf = std::pair<uint64_t, int32_t>;  // (used, node)

  const int32_t* tokens_of(int32_t node) const { return tokens_.data() + node * page_size_; }
  uint64_t hash(int32_t parent, const int32_t* tokens) const;
  int32_t find(int32_t parent, const int32_t* tokens) const;
  int32_t add(int32_t parent, const int32_t* tokens, int32_t page);
  void remove_leaf(int32_t node) noexcept;
  void touch(int32_t node) noexcept;

  PagePool* const pool_;
  const int64_t page_size_;
  std::vector<bool> cached_;  // per page
  std::vector<Node> nodes_;
  std::vector<int32_t> tokens_;                       // page_size per node
  std::vector<int32_t> free_nodes_;                   // capacity >= nodes_.size()
  std::unordered_multimap<uint64_t, int32_t> index_;  // hash of (parent, tokens) -> node
  std::set<Leaf> leaves_;
  uint64_t clock_ = 0;
};

}  // namespace fastpower
