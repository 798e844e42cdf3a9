#include "books/prefix_tree.h"

#include <algorithm>
#include <functional>
#include <queue>
#include <string>

#include "books/errors.h"

namespace fastpower {

uint64_t PrefixTree::hash(int32_t parent, const int32_t* tokens) const {
  uint64_t h = static_cast<uint32_t>(parent) + 0x9E3779B97F4A7C15u;
  for (int64_t i = 0; i < page_size_; ++i) {
    h = (h ^ static_cast<uint32_t>(tokens[i])) * 0xD6E8FEB86659FD93u;
    h ^= h >> 32;
  }
  return h;
}

int32_t PrefixTree::find(int32_t parent, const int32_t* tokens) const {
  const auto range = index_.equal_range(hash(parent, tokens));
  for (auto it = range.first; it != range.second; ++it)
    if (nodes_[it->second].parent == parent && std::equal(tokens, tokens + page_size_, tokens_of(it->second)))
      return it->second;
  return kNone;
}

void PrefixTree::match(const int32_t* tokens, int64_t n, std::vector<int32_t>* pages) {
  pages->clear();
  pages->reserve(n / page_size_);
  int32_t last = kRoot;
  for (int64_t i = 0; i < n / page_size_; ++i) {
    const int32_t node = find(last, tokens + i * page_size_);
    if (node == kNone) break;
    pages->push_back(nodes_[node].page);
    last = node;
  }
  touch(last);
}

void PrefixTree::insert(const int32_t* tokens, const int32_t* pages, int64_t n) {
  int32_t last = kRoot;
  int64_t added = 0;
  try {
    for (int64_t i = 0; i < n; ++i) {
      int32_t node = find(last, tokens + i * page_size_);
      if (node == kNone) {
        node = add(last, tokens + i * page_size_, pages[i]);
        ++added;
      }
      last = node;
    }
  } catch (...) {
    for (; added > 0; --added) {
      const int32_t parent = nodes_[last].parent;
      remove_leaf(last);
      last = parent;
    }
    throw;
  }
  touch(last);
}

int32_t PrefixTree::add(int32_t parent, const int32_t* tokens, int32_t page) {
  if (cached_[page])
    throw std::invalid_argument("tokens differ from those that were remembered for the same page (" +
                                std::to_string(page) + ") before; give the tokens that the sequence holds");
  if (free_nodes_.empty()) {
    const size_t old = nodes_.size(), size = old + old / 2 + 8;
    free_nodes_.reserve(size);
    tokens_.resize(size * page_size_);
    nodes_.resize(size);
    for (size_t i = size; i-- > old;) free_nodes_.push_back(static_cast<int32_t>(i));
  }
  const int32_t node = free_nodes_.back();
  const uint64_t key = hash(parent, tokens);
  const auto entry = index_.emplace(key, node);
  const Leaf leaf{clock_, node};
  if (parent != kRoot && nodes_[parent].children == 0) {
    auto moved = leaves_.extract({nodes_[parent].used, parent});
    moved.value() = leaf;
    leaves_.insert(std::move(moved));
  } else {
    try {
      leaves_.insert(leaf);
    } catch (...) {
      index_.erase(entry);
      throw;
    }
  }
  // Nothing below throws.
  free_nodes_.pop_back();
  std::copy(tokens, tokens + page_size_, tokens_.begin() + node * page_size_);
  nodes_[node] = {page, parent, 0, clock_, key};
  if (parent != kRoot) ++nodes_[parent].children;
  cached_[page] = true;
  pool_->retain(page);
  return node;
}

void PrefixTree::touch(int32_t node) noexcept {
  if (node == kRoot) return;
  ++clock_;
  if (nodes_[node].children == 0) {
    auto moved = leaves_.extract({nodes_[node].used, node});
    moved.value().first = clock_;
    leaves_.insert(std::move(moved));
  }
  for (; node != kRoot; node = nodes_[node].parent) nodes_[node].used = clock_;
}

void PrefixTree::remove_leaf(int32_t node) noexcept {
  const Node gone = nodes_[node];
  const auto range = index_.equal_range(gone.hash);
  for (auto it = range.first; it != range.second; ++it) {
    if (it->second != node) continue;
    index_.erase(it);
    break;
  }
  auto moved = leaves_.extract({gone.used, node});
  if (gone.parent != kRoot && --nodes_[gone.parent].children == 0) {
    moved.value() = {nodes_[gone.parent].used, gone.parent};
    leaves_.insert(std::move(moved));
  }
  nodes_[node] = Node();
  free_nodes_.push_back(node);
  cached_[gone.page] = false;
  pool_->release(gone.page);
}

std::vector<int32_t> PrefixTree::victims(int64_t most) const {
  std::vector<int32_t> chosen, doomed(nodes_.size(), 0);  // doomed: children chosen so far
  std::priority_queue<Leaf, std::vector<Leaf>, std::greater<Leaf>>
      parents;  // that have lost all their children
  auto leaf = leaves_.begin();
  while (static_cast<int64_t>(chosen.size()) < most && (leaf != leaves_.end() || !parents.empty())) {
    int32_t node;
    if (parents.empty() || (leaf != leaves_.end() && *leaf < parents.top())) {
      node = (leaf++)->second;
    } else {
      node = parents.top().second;
      parents.pop();
    }
    if (pool_->count(nodes_[node].page) > 1) continue;
    chosen.push_back(node);
    const int32_t parent = nodes_[node].parent;
    if (parent != kRoot && ++doomed[parent] == nodes_[parent].children)
      parents.push({nodes_[parent].used, parent});
  }
  return chosen;
}

void PrefixTree::evict(const std::vector<int32_t>& victims) noexcept {
  for (const int32_t node : victims) remove_leaf(node);
}

void PrefixTree::clear() noexcept {
  while (!leaves_.empty()) remove_leaf(leaves_.begin()->second);
}

int64_t PrefixTree::evictable() const {
  if (leaves_.empty()) return 0;
  std::vector<int32_t> doomed(nodes_.size(), 0);
  int64_t count = 0;
  for (const Leaf& leaf : leaves_) {
    for (int32_t node = leaf.second; pool_->count(nodes_[node].page) == 1;) {
      ++count;
      node = nodes_[node].parent;
      if (node == kRoot || ++doomed[node] < nodes_[node].children) break;
    }
  }
  return count;
}

void PrefixTree::check() const {
  const auto require = [](bool fine, size_t node, const char* what) {
    if (!fine) throw InconsistentBooks("prefix tree: node " + std::to_string(node) + " " + what);
  };
  std::vector<int32_t> children(nodes_.size(), 0);
  std::vector<bool> seen(pool_->num_pages(), false);
  size_t live = 0, leaves = 0;
  for (size_t i = 0; i < nodes_.size(); ++i) {
    const Node& node = nodes_[i];
    if (node.parent == kNone) continue;
    ++live;
    require(node.page >= 0 && node.page < pool_->num_pages() && !seen[node.page], i,
            "has no page of its own");
    seen[node.page] = true;
    require(find(node.parent, tokens_of(static_cast<int32_t>(i))) == static_cast<int32_t>(i), i,
            "is not found again");
    require(node.hash == hash(node.parent, tokens_of(static_cast<int32_t>(i))), i, "has a wrong hash");
    leaves += leaves_.count({node.used, static_cast<int32_t>(i)});
    if (node.parent == kRoot) continue;
    require(nodes_[node.parent].parent != kNone, i, "has lost its parent");
    require(node.used <= nodes_[node.parent].used, i, "was used after its parent");
    ++children[node.parent];
  }
  for (size_t i = 0; i < nodes_.size(); ++i) {
    require(nodes_[i].children == children[i], i, "counts its children wrongly");
    const bool leaf = nodes_[i].parent != kNone && children[i] == 0;
    require(leaf == (leaves_.count({nodes_[i].used, static_cast<int32_t>(i)}) == 1), i, "is a leaf or not");
  }
  if (cached_ != seen) throw InconsistentBooks("prefix tree: the set of cached pages is wrong");
  if (live != index_.size() || live + free_nodes_.size() != nodes_.size() || leaves != leaves_.size())
    throw InconsistentBooks("prefix tree: nodes, index, leaves and free list disagree");
}

}  // namespace fastpower
