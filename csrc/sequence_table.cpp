#include "sequence_table.h"

#include <algorithm>
#include <limits>
#include <string>

#include "errors.h"

namespace fastpower {
namespace {

constexpr int32_t kLastGeneration = std::numeric_limits<int32_t>::max();

std::string text(int64_t value) { return std::to_string(value); }

[[noreturn]] void cache_full(int64_t need, const PagePool& pool) {
  const int64_t free = pool.num_free();
  throw CacheFull("needs " + text(need) + (need == 1 ? " page, " : " pages, ") + text(free) +
                  (free == 1 ? " is" : " are") + " free (of " + text(pool.num_pages()) +
                  "); free sequences or raise cache_tokens");
}

}  // namespace

struct SequenceTable::OpenPlan {
  Plan plan;
  std::vector<Row> rows;
};

SequenceTable::SequenceTable(int64_t num_pages, int64_t page_size) : pool_(num_pages), page_size_(page_size) {
  if (page_size < 1 || page_size > std::numeric_limits<int32_t>::max() / num_pages)
    throw std::invalid_argument(
        "page_size must be at least 1 and num_pages * page_size below 2^31, got page_size " +
        text(page_size) + " and num_pages " + text(num_pages));
  writers_.assign(num_pages, 0);
  keeper_.assign(num_pages, 0);
}

SequenceTable::~SequenceTable() = default;

// ----------------------------------------------------------------------------------------------------
// handles

int64_t SequenceTable::handle(int32_t index) const {
  return (static_cast<int64_t>(sequences_[index].generation) << 32) | index;
}

int32_t SequenceTable::find(int64_t sequence) const {
  const int64_t index = sequence & 0xFFFFFFFF, generation = sequence >> 32;
  if (index >= static_cast<int64_t>(sequences_.size()) || !sequences_[index].live ||
      sequences_[index].generation != generation)
    throw UnknownSequence("sequence " + text(sequence) +
                          " is unknown: it was freed or never given out; use a live handle from add or fork");
  return static_cast<int32_t>(index);
}

int32_t SequenceTable::find_closed(int64_t sequence) const {
  const int32_t index = find(sequence);
  if (sequences_[index].plan != 0)
    throw std::invalid_argument("sequence " + text(sequence) + " is a row of open plan " +
                                text(sequences_[index].plan) + "; commit or roll back that plan first");
  return index;
}

void SequenceTable::mark_once(int32_t index, int64_t sequence) {
  Sequence& s = sequences_[index];
  if (s.mark == epoch_)
    throw std::invalid_argument("sequence " + text(sequence) + " is given twice; name every sequence once");
  s.mark = epoch_;
}

void SequenceTable::grow(int64_t n) {
  const int64_t missing = n - static_cast<int64_t>(free_indices_.size());
  if (missing <= 0) return;
  const int64_t old = static_cast<int64_t>(sequences_.size());
  const int64_t size = std::max(old + missing, old + old / 2);
  if (size > std::numeric_limits<int32_t>::max()) throw std::length_error("more than 2^31 sequences");
  free_indices_.reserve(size);
  sequences_.resize(size);
  for (int64_t i = size; i-- > old;) free_indices_.push_back(static_cast<int32_t>(i));
}

// ---------------------------------------------------------------------------------------- add, fork,
// truncate, free

int64_t SequenceTable::add() {
  grow(1);
  const int32_t index = free_indices_.back();
  free_indices_.pop_back();
  sequences_[index].live = true;
  return handle(index);
}

void SequenceTable::fork(const int64_t* sequences, const int64_t* lengths, int64_t n, int64_t* forks) {
  for (int64_t i = 0; i < n; ++i) {
    const Sequence& parent = sequences_[find_closed(sequences[i])];
    if (lengths[i] < 0 || lengths[i] > parent.length)
      throw std::invalid_argument("length must be in [0, " + text(parent.length) + "] to fork sequence " +
                                  text(sequences[i]) + ", got " + text(lengths[i]));
  }
  grow(n);
  const int32_t* indices = free_indices_.data() + free_indices_.size() - n;
  for (int64_t i = 0; i < n; ++i) sequences_[indices[i]].pages.reserve(pages_for(lengths[i]));

  // Nothing below throws.
  for (int64_t i = 0; i < n; ++i) {
    const Sequence& parent = sequences_[find(sequences[i])];
    Sequence& child = sequences_[indices[i]];
    const auto end = parent.pages.begin() + pages_for(lengths[i]);
    child.pages.assign(parent.pages.begin(), end);
    for (const int32_t page : child.pages) pool_.retain(page);
    child.length = lengths[i];
    child.live = true;
    forks[i] = handle(indices[i]);
  }
  free_indices_.resize(free_indices_.size() - n);
}

void SequenceTable::truncate(const int64_t* sequences, const int64_t* lengths, int64_t n) {
  ++epoch_;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t index = find_closed(sequences[i]);
    mark_once(index, sequences[i]);
    if (lengths[i] < 0 || lengths[i] > sequences_[index].length)
      throw std::invalid_argument("length must be in [0, " + text(sequences_[index].length) +
                                  "] to truncate sequence " + text(sequences[i]) + ", got " +
                                  text(lengths[i]));
  }
  for (int64_t i = 0; i < n; ++i) {
    Sequence& s = sequences_[find(sequences[i])];
    for (const int64_t keep = pages_for(lengths[i]); static_cast<int64_t>(s.pages.size()) > keep;) {
      pool_.release(s.pages.back());
      s.pages.pop_back();
    }
    s.length = lengths[i];
  }
}

void SequenceTable::free(const int64_t* sequences, int64_t n) {
  ++epoch_;
  for (int64_t i = 0; i < n; ++i) mark_once(find_closed(sequences[i]), sequences[i]);
  for (int64_t i = 0; i < n; ++i) {
    const int32_t index = find(sequences[i]);
    Sequence& s = sequences_[index];
    for (auto page = s.pages.rbegin(); page != s.pages.rend(); ++page) pool_.release(*page);
    s.pages.clear();
    s.length = 0;
    s.live = false;
    // An index whose generations are used up is retired: a handle must never come back.
    if (s.generation == kLastGeneration) continue;
    ++s.generation;
    free_indices_.push_back(index);
  }
}

int64_t SequenceTable::length(int64_t sequence) const { return sequences_[find(sequence)].length; }

// ------------------------------------------------------------------------------------- reserve, commit,
// rollback

std::vector<SequenceTable::Row> SequenceTable::plan_rows(const int64_t* sequences, const int64_t* n_new,
                                                         int64_t n, int64_t* need) {
  std::vector<Row> rows(n);
  *need = 0;
  ++epoch_;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t index = find_closed(sequences[i]);
    mark_once(index, sequences[i]);
    if (n_new[i] < 1)
      throw std::invalid_argument("n_new must be at least 1, got " + text(n_new[i]) + " for sequence " +
                                  text(sequences[i]));
    const Sequence& s = sequences_[index];
    // 2^32 tokens never fit, and no sum of such rows overflows.
    const int64_t tokens = s.length + std::min<int64_t>(n_new[i], int64_t{1} << 32);
    rows[i] = {index, -1, pages_for(tokens) - static_cast<int64_t>(s.pages.size())};
    *need += rows[i].added;
  }

  // Copy-on-write, for the whole batch: count the rows that would write into each shared page, and let the
  // longest of them keep it if nobody else holds it. Nothing throws while writers_ is not 0.
  const auto shared_tail = [&](const Row& row) {
    const Sequence& s = sequences_[row.index];
    return s.length % page_size_ != 0 && pool_.count(s.pages[s.length / page_size_]) > 1;
  };
  for (int64_t i = 0; i < n; ++i) {
    if (!shared_tail(rows[i])) continue;
    const Sequence& s = sequences_[rows[i].index];
    const int32_t page = rows[i].source = s.pages.back();
    if (writers_[page]++ == 0 || s.length > sequences_[rows[keeper_[page]].index].length)
      keeper_[page] = static_cast<int32_t>(i);
  }
  for (int64_t i = 0; i < n; ++i) {
    const int32_t page = rows[i].source;
    if (page >= 0 && keeper_[page] == i && writers_[page] == pool_.count(page)) rows[i].source = -1;
    if (rows[i].source >= 0) ++*need;
  }
  for (const Row& row : rows) {
    const Sequence& s = sequences_[row.index];
    if (!s.pages.empty()) writers_[s.pages.back()] = 0;
  }
  return rows;
}

const Plan& SequenceTable::reserve(const int64_t* sequences, const int64_t* n_new, int64_t n) {
  auto open = std::make_unique<OpenPlan>();
  int64_t need;
  open->rows = plan_rows(sequences, n_new, n, &need);
  if (need > pool_.num_free()) cache_full(need, pool_);

  int64_t total = 0, copies = 0;
  for (int64_t i = 0; i < n; ++i) {
    const Row& row = open->rows[i];
    std::vector<int32_t>& pages = sequences_[row.index].pages;
    const size_t size = pages.size() + row.added;
    if (size > pages.capacity()) pages.reserve(std::max(size, 2 * pages.capacity()));
    total += n_new[i];
    copies += row.source >= 0;
  }
  Plan& plan = open->plan;
  plan.slots.resize(total);
  plan.positions.resize(total);
  plan.source.reserve(copies);
  plan.target.reserve(copies);
  plan.tokens.reserve(copies);
  open_.reserve(open_.size() + 1);

  // Nothing below throws.
  plan.id = ++last_plan_;
  int64_t* slot = plan.slots.data();
  int64_t* position = plan.positions.data();
  for (int64_t i = 0; i < n; ++i) {
    const Row& row = open->rows[i];
    Sequence& s = sequences_[row.index];
    if (row.source >= 0) {
      s.pages.back() = pool_.allocate();  // the plan takes over the row's reference to the source
      plan.source.push_back(row.source);
      plan.target.push_back(s.pages.back());
      plan.tokens.push_back(s.length % page_size_);
    }
    for (int64_t k = 0; k < row.added; ++k) s.pages.push_back(pool_.allocate());
    s.reserved = n_new[i];
    s.plan = plan.id;
    for (int64_t t = s.length, end = s.length + s.reserved; t < end;) {
      const int64_t page = t / page_size_, page_end = std::min(end, (page + 1) * page_size_);
      for (int64_t base = (s.pages[page] - page) * page_size_; t < page_end; ++t) {
        *slot++ = base + t;
        *position++ = t;
      }
    }
  }
  open_.push_back(std::move(open));
  return plan;
}

int64_t SequenceTable::pages_needed(const int64_t* sequences, const int64_t* n_new, int64_t n) {
  int64_t need;
  plan_rows(sequences, n_new, n, &need);
  return need;
}

std::unique_ptr<SequenceTable::OpenPlan> SequenceTable::close(int64_t plan) {
  for (auto it = open_.begin(); it != open_.end(); ++it) {
    if ((*it)->plan.id != plan) continue;
    std::unique_ptr<OpenPlan> found = std::move(*it);
    open_.erase(it);
    return found;
  }
  throw std::invalid_argument("plan " + text(plan) +
                              " is not open: it was committed, rolled back or never made; reserve again");
}

void SequenceTable::commit(int64_t plan) {
  const std::unique_ptr<OpenPlan> open = close(plan);
  for (const Row& row : open->rows) {
    Sequence& s = sequences_[row.index];
    s.length += s.reserved;
    s.reserved = 0;
    s.plan = 0;
    if (row.source >= 0) pool_.release(row.source);
  }
}

void SequenceTable::rollback(int64_t plan) {
  const std::unique_ptr<OpenPlan> open = close(plan);
  // Backwards, so that the free list ends up in its old order and a repeated reserve gets the same pages.
  for (auto row = open->rows.rbegin(); row != open->rows.rend(); ++row) {
    Sequence& s = sequences_[row->index];
    for (int64_t k = 0; k < row->added; ++k) {
      pool_.release(s.pages.back());
      s.pages.pop_back();
    }
    if (row->source >= 0) {
      pool_.release(s.pages.back());
      s.pages.back() = row->source;
    }
    s.reserved = 0;
    s.plan = 0;
  }
}

// -------------------------------------------------------------------------------------------------------
// export

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

// --------------------------------------------------------------------------------------------- stats and
// check

CacheStats SequenceTable::stats() const {
  CacheStats stats;
  stats.pages = num_pages();
  stats.free_pages = free_pages();
  stats.live_pages = stats.pages - stats.free_pages;
  stats.open_plans = static_cast<int64_t>(open_.size());
  for (int32_t page = 0; page < num_pages(); ++page) stats.shared_pages += pool_.count(page) > 1;
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
        require(holders[s.pages[i]] == 1, handle(row.index),
                "would write a page that another sequence holds");
      ++reserved;
    }
  }
  for (const Sequence& s : sequences_) reserved -= s.plan != 0;
  if (reserved != 0) throw InconsistentBooks("sequences and open plans disagree about who has reserved");
  for (int64_t page = 0; page < num_pages(); ++page) {
    if (writers_[page] != 0) throw InconsistentBooks("scratch of page " + text(page) + " was left behind");
    holders[page] += held[page];
  }
  pool_.check(holders);
}

}  // namespace fastpower
