// The whole forward of a Llama-shaped decoder over a paged cache in one call: embedding, then per layer
//
//   h += W_o · attention(rotary(W_qkv · norm(h)))        K/V of the new tokens written to their slots first
//   h += W_down · (act(W_gate · n) · W_up · n),  n = norm(h)
//
// then norm and head on the rows whose logits are wanted. Optional parts: biases, norms of each query and key
// head (Qwen3, Gemma), norms after the two blocks (Gemma), sliding windows. A transformers forward of a 135M
// model makes some 6,700 small tensor calls per step; this makes none.
//
// The residual stream h and everything between two products is float32, also for bfloat16 weights; keys,
// values and queries are rounded to the model's dtype. Every row is computed by operations of a fixed order
// that involve that row and its own K/V only, so its bits do not depend on the batch, the chunking of a
// prefill or the threads.
#pragma once

#include <cstdint>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "cpu/linear/linear.h"
#include "cpu/sampling/row_math.h"

namespace fastpower {

// All pointers are owned by the caller and must outlive the model. Norm weights are float32 (hidden or
// head_dim).
struct DecoderLayer {
  std::vector<Linear> qkv;  // one product, or one for each
  Linear out, gate, up, down;
  const float* input_norm;
  const float* attention_norm;  // after the attention block, or null
  const float* mlp_norm;
  const float* output_norm;  // after the MLP, or null
  const float* q_norm;       // per head, or null
  const float* k_norm;
  int64_t rope;    // index into DecoderModel::ropes
  int64_t window;  // 0 = none
};

// cos and sin of every position, (positions, head_dim / 2) each.
struct Rope {
  const float* cos;
  const float* sin;
  int64_t positions;
};

struct DecoderModel {
  Dtype dtype;
  int64_t hidden, q_heads, kv_heads, head_dim, intermediate, vocab;
  float eps, scale, softcap, embedding_scale;
  Activation activation;
  // (vocab, hidden), contiguous; or null: then its rows are unpacked from these panels
  const void* embedding;
  Dtype embedding_dtype;
  Linear embedding_panels;
  // Products take their rows as blocks of 16-bit integers (quantised_rows.h): all, or none.
  bool quantised;
  const float* final_norm;
  Linear head;
  std::vector<Rope> ropes;
  std::vector<DecoderLayer> layers;
};

// One packed ragged batch; see paged_attention for the page metadata.
struct DecoderBatch {
  int64_t tokens, sequences, max_pages, kept;
  const int64_t* ids;        // (tokens,)
  const int64_t* positions;  // (tokens,)
  const int64_t* slots;      // (tokens,)
  const int64_t* keep;       // (kept,) tokens whose logits are wanted
  const int32_t* page_table;
  const int32_t* query_starts;
  const int32_t* lengths;
  const int32_t* shared_starts;
  const int32_t* shared_pages;
  int64_t groups;
  void* k_cache;  // (layers, num_pages, page_size, kv_heads, head_dim), strides in elements
  void* v_cache;
  int64_t layer_stride, page_stride, num_pages, page_size;
  float* logits;  // (kept, vocab)
};

// Wall time of the parts of the last forward, in seconds.
struct DecoderTimes {
  double qkv, append, attention, out, mlp, head;
};

// A vector that begins at a cache line: a tile row or vector that crosses one costs two reads.
template <typename T>
struct LineAllocator {
  using value_type = T;
  LineAllocator() = default;
  template <typename U>
  LineAllocator(const LineAllocator<U>&) {}
  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t{64})); }
  void deallocate(T* at, size_t) { ::operator delete(at, std::align_val_t{64}); }
  bool operator==(const LineAllocator&) const { return true; }
  bool operator!=(const LineAllocator&) const { return false; }
};
template <typename T>
using Lines = std::vector<T, LineAllocator<T>>;

class DecoderForward {
 public:
  explicit DecoderForward(DecoderModel model) : model_(std::move(model)) {}
  void set_rope(int64_t index, Rope rope) { model_.ropes.at(static_cast<size_t>(index)) = rope; }
  // Throws std::out_of_range for ids, positions, slots or kept rows outside their range; nothing is written
  // then.
  void run(const DecoderBatch& batch);
  DecoderTimes times() const { return times_; }

 private:
  void check(const DecoderBatch& batch) const;
  void embed(const DecoderBatch& batch);
  Rows norm(const float* weight, const int64_t* rows, int64_t count);
  void attention_block(const DecoderLayer& layer, int64_t index, const DecoderBatch& batch);
  void mlp_block(const DecoderLayer& layer, int64_t tokens, const Linear* then);
  void append(const DecoderLayer& layer, int64_t index, const DecoderBatch& batch);
  void attend(const DecoderLayer& layer, int64_t index, const DecoderBatch& batch);
  void add_product(const Linear& linear, const Rows& input, const float* norm, int64_t tokens,
                   const Linear* then);

  DecoderModel model_;
  DecoderTimes times_{};
  std::mutex turn_;  // one forward at a time: what follows is its scratch
  Isa isa_ = Isa::portable;
  const RowMath* math_ = nullptr;
  // (tokens, …) each: the residual stream, normed rows as the kernels want them, q | k | v, a block's output
  // before its own norm, act(gate) · up, and queries and attention output in the model's dtype.
  Lines<float> hidden_, normed_, qkv_, block_, gated_;
  Lines<char> query_, attended_;
};

}  // namespace fastpower
