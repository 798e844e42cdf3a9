#include "cpu/decoder_forward.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/attention/paged_attention.h"

namespace fastpower {
namespace {

constexpr int64_t kSerial = 1 << 13;  // floats: below it one thread is done before another has woken up

// fn(i) for i < rows, in parallel when there is enough to do. fn(i) must touch row i only.
template <typename Fn>
void for_rows(int64_t rows, int64_t floats_per_row, const Fn& fn) {
  const int64_t run = std::max<int64_t>({1, kSerial / 4 / floats_per_row, rows / (16 * num_threads())});
  if (rows * floats_per_row < kSerial) {
    for (int64_t i = 0; i < rows; ++i) fn(i);
    return;
  }
  parallel_for((rows + run - 1) / run, [&](int64_t task) {
    for (int64_t i = task * run; i < std::min(rows, (task + 1) * run); ++i) fn(i);
  });
}

// Distance of rows that products read: an odd number of cache lines, at least. At a multiple of many lines
// the rows of a tile would compete for a few sets of the cache.
int64_t row_bytes(int64_t width, int64_t size) { return ((width * size + 63) / 64 | 1) * 64; }

// n floats to `out`, rounded to bfloat16 if narrow.
void put(const RowMath& math, const float* x, int64_t n, bool narrow, char* out) {
  if (narrow)
    math.narrow(x, n, reinterpret_cast<bfloat16*>(out));
  else
    std::memcpy(out, x, static_cast<size_t>(n) * sizeof(float));
}

// `count` rows of `width` that products of a model read, while they are written.
struct InputRows {
  Isa isa;
  Rows::Form form;
  bool narrow;  // plain rows: bfloat16, else float32
  int64_t stride;
  char* data;
  InputRows(Isa isa, const DecoderModel& model, int64_t width, int64_t count, Lines<float>* memory)
      : isa(isa),
        form(!model.quantised           ? Rows::Form::plain
             : takes_digits(isa, count) ? Rows::Form::digits
                                        : Rows::Form::words),
        narrow(!model.quantised && Rows::narrow(isa, model.dtype)),
        stride(form != Rows::Form::plain ? row_bytes(width / kQuantBlock, sizeof(RowBlock))
                                         : row_bytes(width, narrow ? 2 : 4)),
        data(reinterpret_cast<char*>(memory->data())) {}
  // Whether a row must be complete before it is put.
  bool converts() const { return narrow || form != Rows::Form::plain; }
  // Blocks are put whole: column and n are multiples of 32 then.
  void put_columns(const RowMath& math, const float* x, int64_t n, int64_t row, int64_t column) const {
    if (form == Rows::Form::plain) return put(math, x, n, narrow, plain(row) + column * (narrow ? 2 : 4));
    RowBlock* blocks = reinterpret_cast<RowBlock*>(data + row * stride) + column / kQuantBlock;
    write_row_blocks(isa, form == Rows::Form::digits, x, n, blocks);
  }
  char* plain(int64_t row) const { return data + row * stride; }
  Rows rows() const { return {isa, data, stride, form}; }
};

// What linear_into does with the outputs of a product: writes them to a (rows, width) matrix.
struct CopyTo {
  float* matrix;
  int64_t width;
  void operator()(int64_t row, int64_t column, int64_t columns, const float* values) const {
    std::memcpy(matrix + row * width + column, values, static_cast<size_t>(columns) * sizeof(float));
  }
};

class Clock {
 public:
  void add_to(double* part) {
    const auto now = std::chrono::steady_clock::now();
    *part += std::chrono::duration<double>(now - last_).count();
    last_ = now;
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

void check_index(const char* name, int64_t i, int64_t value, int64_t size) {
  if (value >= 0 && value < size) return;
  throw std::out_of_range(std::string(name) + "[" + std::to_string(i) + "] must lie in [0, " +
                          std::to_string(size) + "), got " + std::to_string(value));
}

}  // namespace

void DecoderForward::check(const DecoderBatch& batch) const {
  int64_t positions = model_.ropes.empty() ? 0 : model_.ropes[0].positions;
  for (const Rope& rope : model_.ropes) positions = std::min(positions, rope.positions);
  for (int64_t i = 0; i < batch.tokens; ++i) {
    check_index("ids", i, batch.ids[i], model_.vocab);
    check_index("positions", i, batch.positions[i], positions);
    check_index("slots", i, batch.slots[i], batch.num_pages * batch.page_size);
  }
  for (int64_t i = 0; i < batch.kept; ++i) check_index("keep", i, batch.keep[i], batch.tokens);
}

void DecoderForward::embed(const DecoderBatch& batch) {
  const int64_t width = model_.hidden;
  for_rows(batch.tokens, width, [&](int64_t i) {
    float* row = hidden_.data() + i * width;
    if (!model_.embedding)
      unpack_row(model_.embedding_panels, batch.ids[i], row);
    else if (model_.embedding_dtype == Dtype::float32)
      std::memcpy(row, static_cast<const float*>(model_.embedding) + batch.ids[i] * width,
                  static_cast<size_t>(width) * sizeof(float));
    else
      math_->widen(static_cast<const bfloat16*>(model_.embedding) + batch.ids[i] * width, width, row);
    if (model_.embedding_scale != 1.0f)
      for (int64_t j = 0; j < width; ++j) row[j] *= model_.embedding_scale;
  });
}

// Normed rows of the residual stream (all of them, or the listed ones), in the format of the kernels.
Rows DecoderForward::norm(const float* weight, const int64_t* rows, int64_t count) {
  const int64_t width = model_.hidden;
  const InputRows out(isa_, model_, width, count, &normed_);
  for_rows(count, width, [&](int64_t i) {
    static thread_local std::vector<float> scratch;  // stays in L1
    if (out.converts() && scratch.size() < static_cast<size_t>(width))
      scratch.resize(static_cast<size_t>(width));
    float* wide = out.converts() ? scratch.data() : reinterpret_cast<float*>(out.plain(i));
    math_->rms_norm(hidden_.data() + (rows ? rows[i] : i) * width, weight, model_.eps, width, wide);
    if (out.converts()) out.put_columns(*math_, wide, width, i, 0);
  });
  return out.rows();
}

// Rotated queries to query_, rotated keys and values to their slots.
void DecoderForward::append(const DecoderLayer& layer, int64_t index, const DecoderBatch& batch) {
  const DecoderModel& m = model_;
  const Rope& rope = m.ropes[static_cast<size_t>(layer.rope)];
  const int64_t dim = m.head_dim, half = dim / 2, heads = m.q_heads + 2 * m.kv_heads, size = size_of(m.dtype);
  for_rows(batch.tokens, heads * dim, [&](int64_t i) {
    float* head = qkv_.data() + i * heads * dim;
    const float* cos = rope.cos + batch.positions[i] * half;
    const float* sin = rope.sin + batch.positions[i] * half;
    const int64_t page = batch.slots[i] / batch.page_size, offset = batch.slots[i] % batch.page_size;
    const int64_t slot =
        (index * batch.layer_stride + page * batch.page_stride + offset * m.kv_heads * dim) * size;
    char* targets[] = {query_.data() + i * m.q_heads * dim * size, static_cast<char*>(batch.k_cache) + slot,
                       static_cast<char*>(batch.v_cache) + slot};
    const int64_t counts[] = {m.q_heads, m.kv_heads, m.kv_heads};
    const float* norms[] = {layer.q_norm, layer.k_norm, nullptr};
    for (int part = 0; part < 3; ++part)
      for (int64_t h = 0; h < counts[part]; ++h, head += dim) {
        if (norms[part]) math_->rms_norm(head, norms[part], m.eps, dim, head);
        if (part < 2) math_->rotate(head, cos, sin, half);
        put(*math_, head, dim, m.dtype != Dtype::float32, targets[part] + h * dim * size);
      }
  });
}

// residual stream += input Wᵀ, normed first where the model says so
void DecoderForward::add_product(const Linear& linear, const Rows& input, const float* norm, int64_t tokens,
                                 const Linear* then) {
  const int64_t width = model_.hidden;
  if (!norm) {
    linear_into(linear, input, tokens, then,
                [&](int64_t row, int64_t column, int64_t columns, const float* values) {
                  math_->add(values, columns, hidden_.data() + row * width + column);
                });
    return;
  }
  linear_into(linear, input, tokens, then, CopyTo{block_.data(), width});
  for_rows(tokens, width, [&](int64_t i) {
    float* row = block_.data() + i * width;
    math_->rms_norm(row, norm, model_.eps, width, row);
    math_->add(row, width, hidden_.data() + i * width);
  });
}

// The layer's attention over the cache, from query_ to attended_.
void DecoderForward::attend(const DecoderLayer& layer, int64_t index, const DecoderBatch& batch) {
  const DecoderModel& m = model_;
  const int64_t offset = index * batch.layer_stride * size_of(m.dtype);
  PagedAttention a{};
  a.query = query_.data();
  a.k_cache = static_cast<char*>(batch.k_cache) + offset;
  a.v_cache = static_cast<char*>(batch.v_cache) + offset;
  a.out = attended_.data();
  a.dtype = m.dtype;
  a.query_token_stride = m.q_heads * m.head_dim;
  a.query_head_stride = m.head_dim;
  a.k_page_stride = a.v_page_stride = batch.page_stride;
  a.tokens = batch.tokens;
  a.q_heads = m.q_heads;
  a.kv_heads = m.kv_heads;
  a.head_dim = m.head_dim;
  a.num_pages = batch.num_pages;
  a.page_size = batch.page_size;
  a.page_table = batch.page_table;
  a.sequences = batch.sequences;
  a.max_pages = a.table_stride = batch.max_pages;
  a.query_starts = batch.query_starts;
  a.lengths = batch.lengths;
  a.shared_starts = batch.shared_starts;
  a.shared_pages = batch.shared_pages;
  a.groups = batch.groups;
  a.scale = m.scale;
  a.softcap = m.softcap;
  a.window = layer.window;
  paged_attention(a);
}

void DecoderForward::attention_block(const DecoderLayer& layer, int64_t index, const DecoderBatch& batch) {
  const int64_t tokens = batch.tokens, width = model_.q_heads * model_.head_dim;
  Clock clock;
  linear_into(layer.qkv, norm(layer.input_norm, nullptr, tokens), tokens, &layer.out,
              CopyTo{qkv_.data(), (model_.q_heads + 2 * model_.kv_heads) * model_.head_dim});
  clock.add_to(&times_.qkv);
  append(layer, index, batch);
  clock.add_to(&times_.append);
  attend(layer, index, batch);
  clock.add_to(&times_.attention);
  Rows attended{isa_, attended_.data(), width * size_of(model_.dtype)};
  if (model_.quantised) {  // q, k and v have been used up: their buffer is free again
    const InputRows out(isa_, model_, width, tokens, &qkv_);
    for_rows(tokens, width, [&](int64_t i) {
      static thread_local std::vector<float> scratch;
      const float* wide = reinterpret_cast<const float*>(attended_.data()) + i * width;
      if (model_.dtype == Dtype::bfloat16) {
        scratch.resize(static_cast<size_t>(width));
        math_->widen(reinterpret_cast<const bfloat16*>(attended_.data()) + i * width, width, scratch.data());
        wide = scratch.data();
      }
      out.put_columns(*math_, wide, width, i, 0);
    });
    attended = out.rows();
  } else if (model_.dtype == Dtype::bfloat16 && !Rows::narrow(isa_, model_.dtype)) {
    for_rows(tokens, width, [&](int64_t i) {  // q, k and v have been used up: their buffer is free again
      math_->widen(reinterpret_cast<const bfloat16*>(attended_.data()) + i * width, width,
                   qkv_.data() + i * width);
    });
    attended = {isa_, reinterpret_cast<const char*>(qkv_.data()), width * 4};
  }
  add_product(layer.out, attended, layer.attention_norm, tokens, &layer.gate);
  clock.add_to(&times_.out);
}

void DecoderForward::mlp_block(const DecoderLayer& layer, int64_t tokens, const Linear* then) {
  Clock clock;
  const Rows input = norm(layer.mlp_norm, nullptr, tokens);
  const int64_t width = model_.intermediate;
  const InputRows out(isa_, model_, width, tokens, &gated_);
  for_each_panel(layer.gate, tokens, &layer.down,
                 [&](int64_t row0, int64_t count, int64_t panel, const NextPanel& next) {
                   alignas(64) float gate[kTileRows * kPanel], up[kTileRows * kPanel];
                   linear_tile(layer.gate, input, row0, count, panel, layer.up.panel_data(panel), gate);
                   linear_tile(layer.up, input, row0, count, panel, next.data(), up);
                   math_->gate(gate, up, count * kPanel, model_.activation, gate);
                   const int64_t column = panel * kPanel, columns = std::min(kPanel, width - column);
                   for (int64_t i = 0; i < count; ++i)
                     out.put_columns(*math_, gate + i * kPanel, columns, row0 + i, column);
                 });
  add_product(layer.down, out.rows(), layer.output_norm, tokens, then);
  clock.add_to(&times_.mlp);
}

void DecoderForward::run(const DecoderBatch& batch) {
  std::lock_guard<std::mutex> turn(turn_);
  check(batch);
  isa_ = active_isa();
  math_ = &row_math(isa_);
  times_ = {};
  const auto grow = [&](auto* buffer, int64_t width) {
    const size_t size = static_cast<size_t>(std::max(batch.tokens, batch.kept) * width);
    if (buffer->size() < size) buffer->resize(size);
  };
  const int64_t queries = model_.q_heads * model_.head_dim;
  grow(&hidden_, model_.hidden);
  grow(&normed_, row_bytes(model_.hidden, 4) / 4);
  grow(&block_, model_.hidden);
  grow(&gated_, row_bytes(model_.intermediate, 4) / 4);
  grow(&qkv_, std::max(queries + 2 * model_.kv_heads * model_.head_dim, row_bytes(queries, 4) / 4));
  grow(&query_, queries * 4);
  grow(&attended_, queries * 4);
  embed(batch);
  for (size_t i = 0; i < model_.layers.size(); ++i) {
    attention_block(model_.layers[i], static_cast<int64_t>(i), batch);
    const bool last = i + 1 == model_.layers.size();
    mlp_block(model_.layers[i], batch.tokens, last ? &model_.head : &model_.layers[i + 1].qkv[0]);
  }
  Clock clock;
  const Rows last = norm(model_.final_norm, batch.keep, batch.kept);
  linear_into(model_.head, last, batch.kept, &model_.layers[0].qkv[0], CopyTo{batch.logits, model_.vocab});
  clock.add_to(&times_.head);
}

}  // namespace fastpower
