#include "cpu/linear/quantised_panels.h"

#include <algorithm>
#include <cstring>

#include "cpu/parallel.h"

namespace fastpower {
namespace {

constexpr int64_t kVector = 64;

// Where the four integers of quad i of a column begin in a block without planes.
int64_t place(int64_t quad, int64_t column) { return (quad * 2 + column / 16) * kVector + column % 16 * 4; }

// 1,024 bytes in vectors (i, h) → planes.
void write_planes(int bits, const uint8_t* q, uint8_t* out) {
  if (bits == 8) {
    std::memcpy(out, q, 1024);
    return;
  }
  for (int p = 0; p < 4; ++p, out += 2 * kVector, q += 4 * kVector)
    for (int l = 0; l < 2 * kVector; ++l)
      out[l] = static_cast<uint8_t>((q[l] & 15) | (q[l + 2 * kVector] & 15) << 4);
  q -= 1024;
  if (bits == 4) return;
  const int width = bits - 4, quads = 8 / width;  // of one byte
  std::memset(out, 0, static_cast<size_t>(width) * 2 * kVector);
  for (int i = 0; i < kQuads; ++i)
    for (int l = 0; l < 2 * kVector; ++l) {
      uint8_t* byte = out + i / quads * 2 * kVector + l;
      *byte = static_cast<uint8_t>(*byte | (q[i * 2 * kVector + l] >> 4) << (i % quads * width));
    }
}

// Byte `at` of a block in vectors (i, h), from its planes.
uint8_t read_planes(int bits, const uint8_t* planes, int64_t at) {
  if (bits == 8) return planes[at];
  const int64_t quad = at / (2 * kVector), l = at % (2 * kVector);
  int value = planes[quad / 2 * 2 * kVector + l] >> (quad % 2 * 4) & 15;
  if (bits > 4) {
    const int width = bits - 4, quads = 8 / width;
    const int high = planes[512 + quad / quads * 2 * kVector + l] >> (quad % quads * width);
    value |= (high & ((1 << width) - 1)) << 4;
  }
  return static_cast<uint8_t>(value);
}

void put_half(uint16_t half, uint8_t* row, int64_t column) { std::memcpy(row + 2 * column, &half, 2); }

void pack_panel(Format f, int64_t in, int64_t columns, const uint64_t* rows, uint8_t* out) {
  alignas(64) uint8_t q[1024];
  const int64_t parts = blocks_of_chunk(f);
  std::memset(out, 0, static_cast<size_t>(quantised_panel_bytes(f, in)));  // of padding columns
  for (int64_t block = 0; block < in / kQuantBlock; ++block) {
    uint8_t* chunk = out + block / parts * chunk_bytes(f);
    uint8_t* body = chunk + header_bytes(f) + block % parts * block_bytes(f);
    uint8_t* after = body + quant_bytes(f);
    if (columns < kColumns) std::memset(q, 0, sizeof(q));
    for (int64_t c = 0; c < columns; ++c) {
      const FileBlock source = read_block(f, reinterpret_cast<const void*>(rows[c]), block);
      for (int64_t i = 0; i < kQuads; ++i) std::memcpy(q + place(i, c), source.q + 4 * i, 4);
      uint8_t* halves = is_super(f) ? chunk : after;
      put_half(source.d, halves, c);
      if (has_min(f)) put_half(source.m, halves + 64, c);
      if (!is_super(f)) continue;
      after[c] = static_cast<uint8_t>(source.scale[0]);
      after[32 + c] = has_min(f) ? source.min : static_cast<uint8_t>(source.scale[1]);
    }
    write_planes(bits_of(f), q, body);
  }
}

}  // namespace

void pack_quantised(Format format, int64_t in, int64_t out, const uint64_t* rows, void* panels) {
  parallel_for((out + kColumns - 1) / kColumns, [&](int64_t panel) {
    const int64_t column = panel * kColumns;
    pack_panel(format, in, std::min(kColumns, out - column), rows + column,
               static_cast<uint8_t*>(panels) + panel * quantised_panel_bytes(format, in));
  });
}

FileBlock panel_block(Format f, const void* panel, int64_t column, int64_t block) {
  const int64_t parts = blocks_of_chunk(f);
  const uint8_t* chunk = static_cast<const uint8_t*>(panel) + block / parts * chunk_bytes(f);
  const uint8_t* body = chunk + header_bytes(f) + block % parts * block_bytes(f);
  const uint8_t* after = body + quant_bytes(f);
  const uint8_t* halves = is_super(f) ? chunk : after;
  FileBlock out{{}, 0, 0, {1, 1}, 1};
  for (int64_t i = 0; i < kQuantBlock; ++i)
    out.q[i] = read_planes(bits_of(f), body, place(i / 4, column) + i % 4);
  std::memcpy(&out.d, halves + 2 * column, 2);
  if (has_min(f)) std::memcpy(&out.m, halves + 64 + 2 * column, 2);
  if (is_super(f)) {
    out.scale[0] = static_cast<int8_t>(after[column]);
    out.scale[1] = has_min(f) ? out.scale[0] : static_cast<int8_t>(after[32 + column]);
    if (has_min(f)) out.min = after[32 + column];
  }
  return out;
}

void unpack_quantised(Format format, int64_t in, int64_t out, const void* panels, float* weight) {
  parallel_for(out, [&](int64_t row) {
    const char* panel = static_cast<const char*>(panels) + row / kColumns * quantised_panel_bytes(format, in);
    for (int64_t block = 0; block < in / kQuantBlock; ++block)
      dequantise_block(format, panel_block(format, panel, row % kColumns, block),
                       weight + row * in + block * kQuantBlock);
  });
}

}  // namespace fastpower
