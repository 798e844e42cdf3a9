#include "books/page_pool.h"

#include <limits>
#include <string>

#include "books/errors.h"

namespace fastpower {

PagePool::PagePool(int64_t num_pages) {
  if (num_pages < 1 || num_pages > std::numeric_limits<int32_t>::max())
    throw std::invalid_argument("num_pages must be in [1, 2^31), got " + std::to_string(num_pages));
  counts_.assign(num_pages, 0);
  free_.resize(num_pages);
  for (int64_t i = 0; i < num_pages; ++i) free_[i] = static_cast<int32_t>(num_pages - 1 - i);
}

int32_t PagePool::allocate() {
  if (free_.empty())
    throw CacheFull("needs 1 page, 0 are free (of " + std::to_string(num_pages()) +
                    "); free sequences or raise cache_tokens");
  const int32_t page = free_.back();
  free_.pop_back();
  counts_[page] = 1;
  return page;
}

void PagePool::not_held(int32_t page) const {
  if (page < 0 || page >= num_pages())
    throw std::invalid_argument("page must be in [0, " + std::to_string(num_pages()) + "), got " +
                                std::to_string(page));
  throw std::invalid_argument("page " + std::to_string(page) +
                              " is free: nobody holds it; allocate it first");
}

void PagePool::check(const std::vector<int32_t>& expected) const {
  std::vector<bool> listed(counts_.size(), false);
  for (const int32_t page : free_) {
    if (page < 0 || page >= num_pages())
      throw InconsistentBooks("the free list holds page " + std::to_string(page) + ", which does not exist");
    if (listed[page]) throw InconsistentBooks("page " + std::to_string(page) + " is twice in the free list");
    listed[page] = true;
  }
  for (int64_t page = 0; page < num_pages(); ++page) {
    const std::string name = "page " + std::to_string(page);
    if (counts_[page] != expected[page])
      throw InconsistentBooks(name + " has reference count " + std::to_string(counts_[page]) + " but " +
                              std::to_string(expected[page]) + " holders");
    if (listed[page] != (counts_[page] == 0))
      throw InconsistentBooks(
          name + (listed[page] ? " is held and free at once" : " is lost: neither held nor free"));
  }
}

}  // namespace fastpower
