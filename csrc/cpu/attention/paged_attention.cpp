#include "cpu/attention/paged_attention.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/attention/paged_attention_task.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace fastpower {
namespace {

constexpr int64_t kTileRows = 96;  // query rows that share one pass over K and V: their state fits into L2
constexpr int64_t kPackCost = 6;   // fetching and packing a key costs about as much as this many rows of work
constexpr int64_t kTasksPerThread = 4;
// Tasks per thread that the rows of a group are cut into before its splits are, which leaves records; but
// each tile reads the run again, so it keeps enough rows to be worth that.
constexpr int64_t kSharedPerThread = 2, kLeastSharedRows = kTileRows / 2;
constexpr int64_t kMinTaskCost = 2048;  // in keys x rows, ~20 us
constexpr int64_t kManyQueries = 16;    // queries per sequence that already share their own reads well

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

std::string at(const char* name, int64_t i) { return std::string(name) + "[" + std::to_string(i) + "]"; }

// The part of the work that tasks are cut from: query tokens of one sequence, or of all sequences of a group.
struct Tile {
  int64_t token, tokens, sequence;
  int64_t begin, end;     // splits
  int64_t first_end = 0;  // splits below it are folded into record 0
  int64_t records = 0;    // per token, counting those of the group
  int64_t heads = 1;      // key/value heads per task
  int64_t cut_cost = 0;   // decides into how many tasks a head is cut; both are the same for a whole group
  bool shared = false;    // splits of a group's shared run
  bool after_shared = false;  // a sequence's own splits behind such a run
};

// Memory that grows and is not cleared, aligned to a cache line.
class Buffer {
 public:
  float* reserve(int64_t floats) {
    if (floats > size_) {
      memory_.reset(new float[floats + 16]);
      size_ = floats;
    }
    const uintptr_t address = reinterpret_cast<uintptr_t>(memory_.get());
    return reinterpret_cast<float*>((address + 63) / 64 * 64);
  }

 private:
  std::unique_ptr<float[]> memory_;
  int64_t size_ = 0;
};

// What planning works with. The calling thread keeps it, so that only a call larger than all before it
// allocates: an engine's decode steps are all alike.
struct PlanMemory {
  std::vector<int32_t> position;
  std::vector<int64_t> record_start, shared_splits, first_end, order, thread_of, place;
  std::vector<Tile> tiles;
  std::vector<AttentionTask> tasks, dealt;
  std::vector<const Tile*> folds;
  Buffer records;
};

PlanMemory& plan_memory() {
  static thread_local PlanMemory mine;
  return mine;
}

class Plan {
 public:
  Plan(const PagedAttention& a, PlanMemory* memory)
      : a_(a),
        memory_(*memory),
        position_(memory->position),
        record_start_(memory->record_start),
        shared_splits_(memory->shared_splits),
        tiles_(memory->tiles),
        tasks_(memory->tasks),
        folds_(memory->folds) {
    position_.resize(a.tokens);
    record_start_.assign(a.tokens, 0);
    shared_splits_.assign(a.sequences, 0);
    tiles_.clear();
    tasks_.clear();
    folds_.clear();
    for (int64_t s = 0; s < a.sequences; ++s)
      for (int64_t t = a.query_starts[s]; t < a.query_starts[s + 1]; ++t)
        position_[t] = a.lengths[s] - (a.query_starts[s + 1] - t);
    rows_per_token_ = a.q_heads / a.kv_heads;
    tile_tokens_ = std::max<int64_t>(1, kTileRows / rows_per_token_);
    tiles_.reserve(a.sequences + a.groups + ceil_div(a.tokens, tile_tokens_));
    add_shared_tiles();
    add_own_tiles();
    cut();
  }

  void run(const AttentionKernel& kernel) {
    const int64_t record_size = padded_dim(a_.head_dim) + 16;
    const AttentionCall call{&a_, position_.data(), record_start_.data(),
                             memory_.records.reserve(records_ * a_.q_heads * record_size), record_size};
    parallel_runs(tasks_.size(), [&](const RunTask& run) {
      kernel.run(call, tasks_[run.task], run.next < 0 ? nullptr : &tasks_[run.next]);
    });
    parallel_runs(folds_.size(), [&](const RunTask& run) {
      const Tile& tile = *folds_[run.task];
      kernel.fold(call, tile.token, tile.tokens, tile.records);
    });
  }

 private:
  int64_t first_seen(int64_t token) const {
    return a_.window > 0 ? std::max<int64_t>(0, position_[token] - a_.window + 1) : 0;
  }

  // A run is read once for its group when every token sees into it and no sequence brings so many queries
  // that its own tiles amortise the reads already. Only whole splits can be shared: the split that the run
  // ends in belongs to each sequence, so that its sums are the same without sharing.
  void add_shared_tiles() {
    for (int64_t g = 0; g < a_.groups; ++g) {
      const int64_t s0 = a_.shared_starts[g], s1 = a_.shared_starts[g + 1];
      const int64_t splits = a_.shared_pages[g] * a_.page_size / kSplit;
      const int64_t t0 = a_.query_starts[s0], t1 = a_.query_starts[s1];
      if (splits == 0 || s1 - s0 < 2 || t1 - t0 > kManyQueries * (s1 - s0)) continue;
      int64_t begin = splits, last_begin = 0;
      for (int64_t t = t0; t < t1; ++t) {
        begin = std::min(begin, first_seen(t) / kSplit);
        last_begin = std::max(last_begin, first_seen(t) / kSplit);
      }
      if (last_begin >= splits) continue;
      for (int64_t s = s0; s < s1; ++s) shared_splits_[s] = splits;
      const int64_t wanted = ceil_div(t1 - t0, ceil_div(kSharedPerThread * num_threads(), a_.kv_heads));
      const int64_t least = ceil_div(kLeastSharedRows, rows_per_token_);
      const int64_t tokens = std::min({tile_tokens_, std::max(wanted, least), t1 - t0});
      for (int64_t t = t0; t < t1; t += tokens) {
        Tile tile{t, std::min(tokens, t1 - t), s0, begin, splits};
        size_tasks(tokens, &tile);
        tile.shared = true;
        tiles_.push_back(tile);
      }
    }
  }

  void add_own_tiles() {
    for (int64_t s = 0; s < a_.sequences; ++s) {
      for (int64_t t = a_.query_starts[s]; t < a_.query_starts[s + 1]; t += tile_tokens_) {
        Tile tile{t, std::min<int64_t>(tile_tokens_, a_.query_starts[s + 1] - t), s, 0, 0};
        tile.begin = std::max(shared_splits_[s], first_seen(t) / kSplit);
        tile.end = position_[t + tile.tokens - 1] / kSplit + 1;
        size_tasks(tile.tokens, &tile);
        tile.after_shared = shared_splits_[s] > 0;
        tiles_.push_back(tile);
      }
    }
  }

  // A few queries visit all heads of a split at once, in the order of memory.
  void size_tasks(int64_t tokens, Tile* tile) const {
    tile->heads = tokens * a_.q_heads <= kTileRows ? a_.kv_heads : 1;
    tile->cut_cost = cost(tile->begin, tile->end, tokens) * tile->heads;
  }

  int64_t cost(int64_t begin, int64_t end, int64_t tokens) const {
    return (end - begin) * kSplit * (tokens * rows_per_token_ + kPackCost);
  }

  // Tiles become tasks, one per key/value head, cut along the splits only as far as the threads need it.
  void cut() {
    int64_t total = 0;
    for (const Tile& tile : tiles_) total += tile.cut_cost * (a_.kv_heads / tile.heads);
    const int64_t threads = num_threads();
    const auto limit = [&](int64_t tasks_per_thread) {
      return threads == 1 ? total + 1 : std::max(kMinTaskCost, total / (threads * tasks_per_thread));
    };
    const int64_t own_limit = limit(kTasksPerThread), shared_limit = limit(kSharedPerThread);
    std::vector<int64_t>& first_end = memory_.first_end;  // of the group that a token is in
    first_end.assign(a_.tokens, 0);
    tasks_.reserve(tiles_.size() * 2);
    folds_.reserve(tiles_.size());
    for (Tile& tile : tiles_) {
      const int64_t splits = tile.end - tile.begin;
      const int64_t per_task =
          ceil_div(splits, std::min(splits, ceil_div(tile.cut_cost, tile.shared ? shared_limit : own_limit)));
      if (tile.after_shared) {
        tile.first_end = first_end[tile.token];
      } else {
        tile.first_end = tile.begin + per_task;
      }
      if (tile.shared)
        std::fill_n(first_end.begin() + tile.token, tile.tokens, tile.first_end);
      else
        place_records(&tile, splits <= per_task);
      for (int64_t begin = tile.begin; begin < tile.end; begin += per_task)
        for (int64_t head = 0; head < a_.kv_heads; head += tile.heads)
          tasks_.push_back({tile.token, tile.tokens, tile.sequence, head, head + tile.heads, begin,
                            std::min(tile.end, begin + per_task),
                            /*record_base=*/tile.first_end - 1,
                            /*first=*/!tile.after_shared && begin == tile.begin,
                            /*whole=*/tile.records == 0 && !tile.shared});
    }
    deal(threads);
  }

  int64_t cost(const AttentionTask& t) const {
    return cost(t.begin, t.end, t.tokens) * (t.head_end - t.head_begin);
  }

  // Longest first, so that no thread is left with a long task at the end. Of equal ones a thread gets
  // neighbours: the heads of a tile, the sequences behind it, and then what is folded lie in its own cache.
  void deal(int64_t threads) {
    const int64_t tasks = static_cast<int64_t>(tasks_.size());
    std::vector<int64_t>&order = memory_.order, &thread_of = memory_.thread_of, &place = memory_.place;
    order.resize(tasks);
    std::iota(order.begin(), order.end(), 0);
    // Not std::stable_sort, which allocates: of equal ones the first comes first.
    std::sort(order.begin(), order.end(), [&](int64_t x, int64_t y) {
      const int64_t x_cost = cost(tasks_[x]), y_cost = cost(tasks_[y]);
      return x_cost != y_cost ? x_cost > y_cost : x < y;
    });
    thread_of.resize(tasks);
    place.assign(threads + 1, 0);
    int64_t favoured = 0;  // the next thread to get one more than others
    for (int64_t first = 0, last; first < tasks; first = last) {
      for (last = first + 1; last < tasks && cost(tasks_[order[last]]) == cost(tasks_[order[first]]);) ++last;
      const int64_t rest = (last - first) % threads;
      int64_t i = first;
      for (int64_t t = 0; t < threads; ++t) {
        const bool more = (t - favoured + threads) % threads < rest;
        for (int64_t n = (last - first) / threads + more; n > 0; --n) thread_of[i++] = t;
      }
      favoured = (favoured + rest) % threads;
    }
    for (int64_t t : thread_of) ++place[t + 1];
    for (int64_t t = 0; t < threads; ++t) place[t + 1] += place[t];
    std::vector<AttentionTask>& dealt = memory_.dealt;
    dealt.reserve(tasks_.capacity());  // the two change places: neither has to grow in the next call
    dealt.resize(tasks);
    for (int64_t i = 0; i < tasks; ++i) dealt[place[thread_of[i]]++] = tasks_[order[i]];
    tasks_.swap(dealt);
  }

  void place_records(Tile* tile, bool uncut) {
    if (uncut && !tile->after_shared) return;
    tile->records = 1 + tile->end - tile->first_end;
    for (int64_t i = 0; i < tile->tokens; ++i) record_start_[tile->token + i] = records_ + i * tile->records;
    records_ += tile->tokens * tile->records;
    folds_.push_back(tile);
  }

  const PagedAttention& a_;
  PlanMemory& memory_;
  std::vector<int32_t>& position_;
  std::vector<int64_t>& record_start_;
  std::vector<int64_t>& shared_splits_;  // per sequence
  std::vector<Tile>& tiles_;
  std::vector<AttentionTask>& tasks_;
  std::vector<const Tile*>& folds_;
  int64_t records_ = 0, rows_per_token_ = 1, tile_tokens_ = 1;
};

const AttentionKernel& kernel() {
#if defined(__x86_64__)
  // The dot products of AVX-512 BF16 are not used: they would round the weights to bfloat16, and on Intel
  // they have half the rate of float32 multiply-adds (measured).
  if (active_isa() >= Isa::amx) return amx::attention_kernel;
  if (active_isa() >= Isa::avx512) return avx512::attention_kernel;
  if (active_isa() >= Isa::avx2) return avx2::attention_kernel;
#endif
  return portable::attention_kernel;
}

// The last of a query's ancestors is itself: they come before it.
void check_tree(const PagedAttention& a, int64_t s) {
  const int64_t start = a.query_starts[s], queries = a.query_starts[s + 1] - start;
  if (queries > kMaxTree)
    throw std::invalid_argument(
        "paged_attention: ancestors is for at most 64 queries of a sequence, but sequence " +
        std::to_string(s) + " has " + std::to_string(queries));
  for (int64_t i = 0; i < queries; ++i)
    if (static_cast<uint64_t>(a.ancestors[start + i]) >> i != 1)
      throw std::invalid_argument("paged_attention: the highest bit of " + at("ancestors", start + i) +
                                  " must be " + std::to_string(i) + ", the query's own among sequence " +
                                  std::to_string(s) + "'s, got the word " +
                                  std::to_string(static_cast<uint64_t>(a.ancestors[start + i])));
}

void check_group(const PagedAttention& a, int64_t g) {
  const int64_t s0 = a.shared_starts[g], s1 = a.shared_starts[g + 1], pages = a.shared_pages[g];
  if (s0 < 0 || s1 < s0 || s1 > a.sequences)
    throw std::invalid_argument("paged_attention: shared starts must not decrease and lie in 0 to " +
                                std::to_string(a.sequences) + ", got " + std::to_string(s0) + " and " +
                                std::to_string(s1) + " for group " + std::to_string(g));
  if (pages < 0 || pages > a.max_pages)
    throw std::out_of_range("paged_attention: shared pages of group " + std::to_string(g) + " is " +
                            std::to_string(pages) + ", but page_table has " + std::to_string(a.max_pages) +
                            " columns");
  for (int64_t s = s0; s < s1; ++s) {
    const int64_t first_query = a.lengths[s] - (a.query_starts[s + 1] - a.query_starts[s]);
    if (pages * a.page_size > first_query)
      throw std::invalid_argument("paged_attention: group " + std::to_string(g) + " shares " +
                                  std::to_string(pages) + " pages, but sequence " + std::to_string(s) +
                                  " has a query at position " + std::to_string(first_query) +
                                  " inside them; share full pages before every query");
    if (!std::equal(a.page_table + s0 * a.table_stride, a.page_table + s0 * a.table_stride + pages,
                    a.page_table + s * a.table_stride))
      throw std::invalid_argument("paged_attention: sequences " + std::to_string(s0) + " and " +
                                  std::to_string(s) + " of group " + std::to_string(g) +
                                  " differ in their first " + std::to_string(pages) + " page_table entries");
  }
}

}  // namespace

float* attention_scratch(int64_t floats) {
  static thread_local Buffer buffer;
  return buffer.reserve(floats);
}

void check_attention(const PagedAttention& a) {
  if (a.query_starts[0] != 0 || a.query_starts[a.sequences] != a.tokens)
    throw std::invalid_argument("paged_attention: query_starts must go from 0 to the number of queries " +
                                std::to_string(a.tokens) + ", got " + std::to_string(a.query_starts[0]) +
                                " to " + std::to_string(a.query_starts[a.sequences]));
  for (int64_t s = 0; s < a.sequences; ++s) {
    const int64_t queries = int64_t{a.query_starts[s + 1]} - a.query_starts[s], length = a.lengths[s];
    if (queries < 0)
      throw std::invalid_argument("paged_attention: query_starts must not decrease, " +
                                  at("query_starts", s + 1) + " does");
    if (length < queries)
      throw std::invalid_argument("paged_attention: " + at("lengths", s) + " is " + std::to_string(length) +
                                  ", less than the sequence's " + std::to_string(queries) +
                                  " queries; lengths count them (append K/V first)");
    const int64_t pages = ceil_div(length, a.page_size);
    if (pages > a.max_pages)
      throw std::invalid_argument("paged_attention: " + at("lengths", s) + " is " + std::to_string(length) +
                                  ", but page_table has " + std::to_string(a.max_pages) + " pages of " +
                                  std::to_string(a.page_size) + " tokens for it");
    if (a.ancestors) check_tree(a, s);
    const int32_t* table = a.page_table + s * a.table_stride;
    for (int64_t p = 0; p < pages; ++p)
      if (table[p] < 0 || table[p] >= a.num_pages)
        throw std::out_of_range("paged_attention: " + at("page_table", s) + "[" + std::to_string(p) +
                                "] is " + std::to_string(table[p]) + ", but the cache has pages 0 to " +
                                std::to_string(a.num_pages - 1));
  }
  for (int64_t g = 0; g < a.groups; ++g) check_group(a, g);
}

void paged_attention(const PagedAttention& a) {
  check_attention(a);
  if (a.tokens > 0) Plan(a, &plan_memory()).run(kernel());
}

}  // namespace fastpower
