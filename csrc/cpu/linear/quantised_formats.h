// The block formats of GGUF files that `linear` multiplies by without unpacking them to memory.
//
// A row of weights is cut in blocks of 32. Whatever the format, a weight is  a · (q − offset) − b  with an
// unsigned integer q of 4, 5, 6 or 8 bits and float32 a, b that its block (in Q6_K: its half of a block)
// shares; a and b are products of a float16 and a small integer, so they are exact. The rounding of that
// expression to float32, product first, is what the `gguf` library calls the weight.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"

namespace fastpower {

// Numbers as in GGUF files, so that a file's type is ours.
enum class Format {
  dense = -1,
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q4_k = 12,
  q5_k = 13,
  q6_k = 14
};

constexpr int64_t kQuantBlock = 32;  // weights that share their scales
constexpr int64_t kSuper = 256;      // weights of a block of the file, in the K formats

constexpr bool is_super(Format f) { return f >= Format::q4_k; }
constexpr int bits_of(Format f) {
  return f == Format::q8_0                                             ? 8
         : f == Format::q6_k                                           ? 6
         : f == Format::q4_0 || f == Format::q4_1 || f == Format::q4_k ? 4
                                                                       : 5;
}
constexpr int offset_of(Format f) {
  return f == Format::q4_0   ? 8
         : f == Format::q5_0 ? 16
         : f == Format::q6_k ? 32
         : f == Format::q8_0 ? 128
                             : 0;
}
// Whether b is not always zero.
constexpr bool has_min(Format f) {
  return f == Format::q4_1 || f == Format::q5_1 || f == Format::q4_k || f == Format::q5_k;
}
// Weights that share a.
constexpr int64_t group_of(Format f) { return f == Format::q6_k ? 16 : 32; }
// Weights and bytes of a block of the file.
constexpr int64_t file_block(Format f) { return is_super(f) ? kSuper : kQuantBlock; }
constexpr int64_t file_block_bytes(Format f) {
  switch (f) {
    case Format::q4_0:
      return 18;
    case Format::q4_1:
      return 20;
    case Format::q5_0:
      return 22;
    case Format::q5_1:
      return 24;
    case Format::q8_0:
      return 34;
    case Format::q4_k:
      return 144;
    case Format::q5_k:
      return 176;
    case Format::q6_k:
      return 210;
    default:
      return 0;
  }
}

Format format_from_type(int64_t type);  // throws std::invalid_argument for one that is not listed

// 32 weights as their file has them: q as above, d and m the bits of float16 (m: zero where the format has
// none), and the integers that d and m are multiplied by (1 where it has none), one for each half.
struct FileBlock {
  uint8_t q[kQuantBlock];
  uint16_t d, m;
  int8_t scale[2];
  uint8_t min;
};

// Block `block` (of 32 weights) of a row of the file.
FileBlock read_block(Format format, const void* row, int64_t block);

// a for each half of the block, and b. (Q4_1 and Q5_1 say "+ m", so their b is −m.)
struct BlockScales {
  float a[2], b;
};
BlockScales scales_of(Format format, const FileBlock& block);

// The 32 weights of a block as float32.
void dequantise_block(Format format, const FileBlock& block, float* out);

// n weights of a row of the file as float32, equal to `gguf.quants.dequantize` bit for bit.
void dequantise_row(Format format, const void* row, int64_t n, float* out);

}  // namespace fastpower
