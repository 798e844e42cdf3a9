// Fixed-size pages and how many hold each of them. Knows neither tensors nor sequences.
//
// A page is free (count 0) or held (count = number of holders). The free list is a stack: the page given back
// last is handed out first, and pages that were never used are handed out in ascending order, so that a large
// cache touches only as much memory as it has ever needed at once.
#pragma once

#include <cstdint>
#include <vector>

namespace fastpower {

class PagePool {
 public:
  explicit PagePool(int64_t num_pages);  // throws std::invalid_argument unless 1 <= num_pages < 2^31

  int32_t allocate();  // a free page, now with count 1; throws CacheFull

  // One more holder; throws std::invalid_argument if the page is free or unknown.
  void retain(int32_t page) {
    if (!is_held(page)) not_held(page);
    ++counts_[page];
  }

  // One holder less, at 0 the page is free; throws std::invalid_argument if the page is free or unknown.
  void release(int32_t page) {
    if (!is_held(page)) not_held(page);
    if (--counts_[page] == 0) free_.push_back(page);
  }

  int32_t count(int32_t page) const { return counts_[page]; }  // 0 <= page < num_pages
  int64_t num_pages() const { return static_cast<int64_t>(counts_.size()); }
  int64_t num_free() const { return static_cast<int64_t>(free_.size()); }

  // Compares the books with counts taken from scratch by the holders; throws InconsistentBooks naming the
  // page.
  void check(const std::vector<int32_t>& expected) const;

 private:
  bool is_held(int32_t page) const {
    return static_cast<uint32_t>(page) < counts_.size() && counts_[page] != 0;
  }
  [[noreturn]] void not_held(int32_t page) const;

  std::vector<int32_t> counts_;
  std::vector<int32_t> free_;  // capacity num_pages: release never allocates
};

}  // namespace fastpower
