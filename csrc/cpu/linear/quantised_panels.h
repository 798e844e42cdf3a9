// Panels of quantised weights: 32 output columns side by side, one stream of bytes per panel, nothing
// rounded.
//
// A panel is a sequence of chunks: a block of 32 inputs (Q4_0 … Q8_0) or eight of them (the K formats).
//
//   K formats only: d of the 32 columns (float16) and, where there is one, the factor of the mins (float16)
//   for each block: the integers, 128 bytes a bit;
//     Q4_0 … Q8_0: d of the 32 columns and, where there is one, m (float16)
//     Q4_K, Q5_K:  the factors of d and of the mins (32 bytes each);  Q6_K: the factors of d of both halves
//
// The integers of a block stand in vectors of 64 bytes: vector (i, h) holds inputs 4 i … 4 i + 3 of columns
// 16 h … 16 h + 15, a column's four side by side, which is what vpdpbusd multiplies. In planes: first the low
// four bits, vector (p, h) with (2 p, h) in the low and (2 p + 1, h) in the high half of each byte; then the
// fifth bits, vector h with (i, h) in bit i; or the fifth and sixth, vector (t, h) with (4 t + j, h) in bits
// 2 j and 2 j + 1. Integers of eight bits stand as they are. The bytes are those of the file, but for
// Q4_K and Q5_K, whose factors of 6 bits take 8 here (2.8 and 2.3 % more).
#pragma once

#include <cstdint>

#include "cpu/linear/quantised_formats.h"

namespace fastpower {

constexpr int64_t kColumns = 32;             // of a panel
constexpr int64_t kQuads = kQuantBlock / 4;  // groups of four inputs of a block

constexpr int64_t blocks_of_chunk(Format f) { return file_block(f) / kQuantBlock; }
constexpr int64_t header_bytes(Format f) { return is_super(f) ? (has_min(f) ? 128 : 64) : 0; }
constexpr int64_t quant_bytes(Format f) { return bits_of(f) * 128; }
// Integers and what is said of them once a block.
constexpr int64_t block_bytes(Format f) {
  return quant_bytes(f) + (is_super(f) ? 64 : (has_min(f) ? 128 : 64));
}
constexpr int64_t chunk_bytes(Format f) { return header_bytes(f) + blocks_of_chunk(f) * block_bytes(f); }
constexpr int64_t quantised_panel_bytes(Format f, int64_t in) { return in / file_block(f) * chunk_bytes(f); }

// rows[c], c < out: where the row of output column c begins in the file. panels: 64-byte aligned, room for
// every panel. Uses parallel_for.
void pack_quantised(Format format, int64_t in, int64_t out, const uint64_t* rows, void* panels);
// (out, in) float32, equal bit for bit to what dequantise_row makes of the rows that were packed.
void unpack_quantised(Format format, int64_t in, int64_t out, const void* panels, float* weight);

// Block `block` of a panel's column.
FileBlock panel_block(Format format, const void* panel, int64_t column, int64_t block);

}  // namespace fastpower
