#include "books/sequence_table.h"

#include <algorithm>
#include <limits>
#include <string>

#include "books/errors.h"

namespace fastpower {
namespace {

std::string text(int64_t value) { return std::to_string(value); }

[[noreturn]] void cache_full(int64_t need, int64_t free, int64_t pages) {
  throw CacheFull("needs " + text(need) + (need == 1 ? " page, " : " pages, ") + text(free) +
                  (free == 1 ? " is" : " are") + " free (of " + text(pages) +
                  "); free sequences or raise cache_tokens");
}

}  // namespace

SequenceTable::SequenceTable(int64_t num_pages, int64_t page_size)
    : pool_(num_pages), prefixes_(&pool_, page_size), page_size_(page_size) {
  if (page_size < 1 || page_size > std::numeric_limits<int32_t>::max() / num_pages)
    throw std::invalid_argument(
        "page_size must be at least 1 and num_pages * page_size below 2^31, got page_size " +
        text(page_size) + " and num_pages " + text(num_pages));
  writers_.assign(num_pages, 0);
  keeper_.assign(num_pages, 0);
}

// --------------------------------------------------------------------------------------------------- handles

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

// --------------------------------------------------------------------------------- add, fork, truncate, free

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

// --------------------------------------------------------------------------------- reserve, commit, rollback

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
  std::vector<int32_t> victims;  // cached prefixes that have to go
  if (need > pool_.num_free()) {
    victims = prefixes_.victims(need - pool_.num_free());
    const int64_t available = pool_.num_free() + static_cast<int64_t>(victims.size());
    if (need > available) cache_full(need, available, num_pages());
  }

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
  prefixes_.evict(victims);
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

// ---------------------------------------------------------------------------------------------- prefix reuse

void SequenceTable::remember(int64_t sequence, const int32_t* tokens, int64_t n) {
  const Sequence& s = sequences_[find(sequence)];
  if (n > s.length)
    throw std::invalid_argument("tokens must be at most the " + text(s.length) + " that sequence " +
                                text(sequence) + " holds, got " + text(n));
  prefixes_.insert(tokens, s.pages.data(), n / page_size_);
}

int64_t SequenceTable::match(const int32_t* tokens, int64_t n, int64_t* length) {
  grow(1);
  const int32_t index = free_indices_.back();
  Sequence& s = sequences_[index];
  prefixes_.match(tokens, n, &s.pages);
  for (const int32_t page : s.pages) pool_.retain(page);
  *length = s.length = static_cast<int64_t>(s.pages.size()) * page_size_;
  s.live = true;
  free_indices_.pop_back();
  return handle(index);
}

void SequenceTable::forget() { prefixes_.evict(prefixes_.victims(num_pages())); }

}  // namespace fastpower
