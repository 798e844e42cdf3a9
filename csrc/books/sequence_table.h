// Sequences as lists of pages: fork by reference count, truncate in place, append by reserve and commit.
//
// Sequence s of length n keeps token t in slot pages[t / page_size] * page_size + t % page_size. Forks share
// pages. A page is written only by its sole owner: reserve() gives a row a fresh copy of its last page when
// that page is partly filled and others hold it too (copy-on-write). The exception that is none: when all
// holders of such a page are rows of the same plan, the longest of them keeps the page and the others copy,
// so k forks cost k - 1 copies; it writes behind everything that the others hold, so copies and writes touch
// different slots, and a rollback after the writes still finds every token of every sequence in place.
//
// Every mutator does all of its work or throws with nothing changed. Not thread-safe: one owner at a time.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "books/page_pool.h"
#include "books/prefix_tree.h"

namespace fastpower {

struct CacheStats {
  int64_t pages = 0;         // = free + cached + live
  int64_t free_pages = 0;    // nobody holds them
  int64_t cached_pages = 0;  // only the prefix tree holds them
  int64_t live_pages = 0;    // sequences and open plans hold them
  int64_t shared_pages = 0;  // live pages with more than one holder among sequences and open plans
  int64_t sequences = 0, open_plans = 0;
  int64_t tokens = 0;           // sum of all lengths
  int64_t distinct_tokens = 0;  // slots that hold a token of at least one sequence
};

// What to do before and while the tokens of reserve() are written. Rows in the order asked for.
struct Plan {
  int64_t id = 0;
  std::vector<int64_t> slots;      // (sum of n_new) where each new token's K/V goes
  std::vector<int64_t> positions;  // (sum of n_new) the position of each new token in its sequence
  std::vector<int64_t> source, target, tokens;  // (copies) copy the first tokens[i] slots of page source[i]
};

class SequenceTable {
 public:
  // Throws std::invalid_argument unless page_size >= 1 and 1 <= num_pages * page_size < 2^31.
  SequenceTable(int64_t num_pages, int64_t page_size);

  // Handles are never given out twice. Bulk calls take n entries and are all or nothing.
  int64_t add();
  void fork(const int64_t* sequences, const int64_t* lengths, int64_t n, int64_t* forks);  // repeats welcome
  void truncate(const int64_t* sequences, const int64_t* lengths, int64_t n);
  void free(const int64_t* sequences, int64_t n);
  int64_t length(int64_t sequence) const;  // committed tokens

  // Room for n_new[i] >= 1 more tokens of each sequence, no sequence twice and none in another open plan.
  // Until commit() (lengths grow) or rollback() (everything as before) the sequences cannot be forked,
  // truncated or freed, and the sources of the copies are held. Several plans may be open. Throws CacheFull.
  // The plan lives until closed.
  const Plan& reserve(const int64_t* sequences, const int64_t* n_new, int64_t n);
  void commit(int64_t plan);
  void rollback(int64_t plan);
  int64_t pages_needed(const int64_t* sequences, const int64_t* n_new, int64_t n);  // by that reserve(); pure

  // Writes row i of table (n, max_pages), rest 0, and lengths[i]. Pages and lengths include reserved tokens.
  void page_tables(const int64_t* sequences, int64_t n, int32_t* table, int64_t max_pages,
                   int32_t* lengths) const;
  int64_t max_pages(const int64_t* sequences, int64_t n) const;  // the least that page_tables() accepts

  // Runs of consecutive rows that begin with the same pages, all full and before the last n_query[i] tokens
  // of each row: run g is rows starts[g] .. starts[g + 1] - 1 and shares pages[g] pages (0 for a row on its
  // own). A row joins a run if that does not lower the number of page reads saved.
  void shared_runs(const int64_t* sequences, const int64_t* n_query, int64_t n, std::vector<int32_t>* starts,
                   std::vector<int32_t>* pages) const;

  // Prefix reuse. remember(): the full pages of the first n <= length tokens stay cached after the sequence
  // is gone, for as long as reserve() does not need them. match(): a new sequence that begins with the
  // longest cached prefix of tokens, *length of them (0 if there is none). forget(): gives back every cached
  // page that no sequence holds.
  void remember(int64_t sequence, const int32_t* tokens, int64_t n);
  int64_t match(const int32_t* tokens, int64_t n, int64_t* length);
  void forget();
  void forget_all() noexcept {
    prefixes_.clear();
  }  // also what sequences hold: nothing can be matched any more

  int64_t page_size() const { return page_size_; }
  int64_t num_pages() const { return pool_.num_pages(); }
  int64_t free_pages() const { return pool_.num_free() + prefixes_.evictable(); }  // that reserve() can have
  CacheStats stats() const;
  void check() const;  // recounts everything from scratch; throws InconsistentBooks

 private:
  static constexpr int32_t kLastGeneration = std::numeric_limits<int32_t>::max();
  struct Sequence {
    std::vector<int32_t> pages;  // ceil((length + reserved) / page_size)
    int64_t length = 0, reserved = 0;
    int64_t plan = 0;  // id of the open plan it is a row of, 0 = none
    uint64_t mark = 0;
    int32_t generation = 1;
    bool live = false;
  };
  struct Row {
    int32_t index;   // of the sequence
    int32_t source;  // page to copy, -1 = none
    int64_t added;   // fresh pages behind the last one
  };
  struct OpenPlan {
    Plan plan;
    std::vector<Row> rows;
  };

  int64_t pages_for(int64_t tokens) const { return (tokens + page_size_ - 1) / page_size_; }
  int64_t handle(int32_t index) const;
  int32_t find(int64_t sequence) const;         // index; throws UnknownSequence
  int32_t find_closed(int64_t sequence) const;  // and not a row of an open plan
  void mark_once(int32_t index, int64_t sequence);
  void grow(int64_t n);  // at least n free indices
  std::vector<Row> plan_rows(const int64_t* sequences, const int64_t* n_new, int64_t n, int64_t* need);
  std::unique_ptr<OpenPlan> close(int64_t plan);

  PagePool pool_;
  PrefixTree prefixes_;  // after the pool, on whose pages it holds references
  const int64_t page_size_;
  std::vector<Sequence> sequences_;
  std::vector<int32_t> free_indices_;  // capacity >= sequences_.size(): free never allocates
  std::vector<std::unique_ptr<OpenPlan>> open_;
  int64_t last_plan_ = 0;
  uint64_t epoch_ = 0;                     // marks of this bulk call
  std::vector<int32_t> writers_, keeper_;  // per page, scratch of plan_rows; writers_ is 0 between calls
};

}  // namespace fastpower
