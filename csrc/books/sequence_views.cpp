// What can be seen of a SequenceTable: exports for kernels, statistics, and the check of its invariants.
#include <algorithm>
#include <string>

#include "books/errors.h"
#include "books/sequence_table.h"

namespace fastpower {
namespace {

std::string text(int64_t value) { return std::to_string(value); }

}  // namespace

// ---------------------------------------------------------------------------------------------------- export

int64_t SequenceTable::max_pages(const int64_t* sequences, int64_t n) const {
  size_t most = 0;
  for (int64_t i = 0; i < n; ++i) most = std::max(most, sequences_[find(sequences[i])].pages.size());
  return static_cast<int64_t>(most);
}

void SequenceTable::page_tables(const int64_t* sequences, int64_t n, int32_t* table, int64_t max_pages,
                                int32_t* lengths) const {
  const int64_t most = this->max_pages(sequences, n);
  if (most > max_pages)
    throw std::invalid_argument("page_table has " + text(max_pages) + " columns, these sequences need " +
                                text(most));
  for (int64_t i = 0; i < n; ++i, table += max_pages) {
    const Sequence& s = sequences_[find(sequences[i])];
    std::fill(std::copy(s.pages.begin(), s.pages.end(), table), table + max_pages, 0);
    lengths[i] = static_cast<int32_t>(s.length + s.reserved);
  }
}

void SequenceTable::shared_runs(const int64_t* sequences, const int64_t* n_query, int64_t n,
                                std::vector<int32_t>* starts, std::vector<int32_t>* pages) const {
  starts->clear();
  pages->clear();
  const Sequence* first = nullptr;  // of the current run
  int64_t rows = 0, shared = 0;     // of the current run; shared counts its full pages while rows == 1
  const auto close_run = [&] {
    if (rows > 0) pages->push_back(static_cast<int32_t>(rows > 1 ? shared : 0));
  };
  for (int64_t i = 0; i < n; ++i) {
    const Sequence& s = sequences_[find(sequences[i])];
    const int64_t extent = s.length + s.reserved;
    if (n_query[i] < 1 || n_query[i] > extent)
      throw std::invalid_argument("n_query must be in [1, " + text(extent) + "] for sequence " +
                                  text(sequences[i]) + ", got " + text(n_query[i]));
    const int64_t full = (extent - n_query[i]) / page_size_;
    int64_t common = 0;
    if (rows > 0) {
      const auto begin = first->pages.begin(), end = begin + std::min(shared, full);
      common = std::mismatch(begin, end, s.pages.begin()).first - begin;
    }
    if (common > 0 && common * rows >= shared * (rows - 1)) {
      shared = common;
      ++rows;
      continue;
    }
    close_run();
    starts->push_back(static_cast<int32_t>(i));
    first = &s;
    rows = 1;
    shared = full;
  }
  close_run();
  starts->push_back(static_cast<int32_t>(n));
}

// ------------------------------------------------------------------------------------------- stats and check

CacheStats SequenceTable::stats() const {
  CacheStats stats;
  stats.pages = num_pages();
  stats.free_pages = pool_.num_free();
  stats.open_plans = static_cast<int64_t>(open_.size());
  for (int32_t page = 0; page < num_pages(); ++page) {
    const int32_t holders = pool_.count(page) - prefixes_.holds(page);
    stats.live_pages += holders > 0;
    stats.shared_pages += holders > 1;
  }
  stats.cached_pages = stats.pages - stats.free_pages - stats.live_pages;
  std::vector<int64_t> filled(num_pages(), 0);
  for (const Sequence& s : sequences_) {
    stats.sequences += s.live;
    stats.tokens += s.length;
    for (int64_t t = 0, i = 0; t < s.length; t += page_size_, ++i) {
      int64_t& most = filled[s.pages[i]];
      const int64_t here = std::min(page_size_, s.length - t);
      stats.distinct_tokens += std::max<int64_t>(0, here - most);
      most = std::max(most, here);
    }
  }
  return stats;
}

void SequenceTable::check() const {
  const auto require = [](bool fine, int64_t sequence, const char* what) {
    if (!fine) throw InconsistentBooks("sequence " + text(sequence) + " " + what);
  };
  std::vector<int32_t> holders(num_pages(), 0);
  std::vector<int64_t> seen(num_pages(), -1);
  std::vector<bool> unused(sequences_.size(), false);
  for (const int32_t index : free_indices_) {
    require(!unused[index], index, "is twice in the free list");
    unused[index] = true;
  }
  for (int64_t i = 0; i < static_cast<int64_t>(sequences_.size()); ++i) {
    const Sequence& s = sequences_[i];
    const int64_t name = handle(static_cast<int32_t>(i));
    require(s.live != unused[i] || s.generation == kLastGeneration, name,
            "is live and free at once, or lost");
    require(s.length >= 0 && (s.live || s.length == 0), name, "has a wrong length");
    require((s.plan == 0) == (s.reserved == 0), name, "has reserved tokens without a plan");
    require(static_cast<int64_t>(s.pages.size()) == pages_for(s.length + s.reserved), name,
            "has a wrong page count");
    for (const int32_t page : s.pages) {
      require(page >= 0 && page < num_pages(), name, "holds a page that does not exist");
      require(seen[page] != i, name, "holds a page twice");
      seen[page] = i;
      ++holders[page];
    }
  }
  std::vector<int32_t> held(num_pages(), 0);  // by plans, as sources of copies
  int64_t reserved = 0;
  for (const auto& open : open_)
    for (const Row& row : open->rows)
      if (row.source >= 0) ++held[row.source];
  for (const auto& open : open_) {
    for (const Row& row : open->rows) {
      const Sequence& s = sequences_[row.index];
      require(s.live && s.plan == open->plan.id, handle(row.index), "does not know the plan it is a row of");
      for (size_t i = s.length / page_size_; i < s.pages.size(); ++i)
        require(holders[s.pages[i]] == 1 && !prefixes_.holds(s.pages[i]), handle(row.index),
                "would write a page that others hold");
      ++reserved;
    }
  }
  for (const Sequence& s : sequences_) reserved -= s.plan != 0;
  if (reserved != 0) throw InconsistentBooks("sequences and open plans disagree about who has reserved");
  for (int64_t page = 0; page < num_pages(); ++page) {
    if (writers_[page] != 0) throw InconsistentBooks("scratch of page " + text(page) + " was left behind");
    holders[page] += held[page] + prefixes_.holds(static_cast<int32_t>(page));
  }
  prefixes_.check();
  pool_.check(holders);
}

}  // namespace fastpower
