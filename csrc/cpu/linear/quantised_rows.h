// Rows that quantised weights are multiplied with: block floating point with 16 bits.
//
// 32 neighbours of a row share a scale, chosen so that the largest of them becomes ±32639, and are rounded to
// nearest. So a value is off by at most 2⁻¹⁶ of the largest of its 32, where bfloat16 is off by up to 2⁻⁹ of
// itself. What it buys: the sum over a block is a sum of integers, exact in any order, on any
// instruction set and by any kernel; only the sum over blocks is floating point, in one fixed order.
//
// Two forms of the same integers x: words, and digits x = 256 high + low of signed bytes, with which few rows
// take half the instructions (vpdpbusd multiplies unsigned bytes of weights without widening them).
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "cpu/linear/quantised_formats.h"

namespace fastpower {

struct RowBlock {
  // words: inputs 0, 2, 1, 3 of every four; digits: the high ones of four inputs, then their low ones.
  alignas(4) int16_t x[kQuantBlock];
  float scale;       // what 1 stands for; NaN if an input of the block is not finite
  int32_t minus[3];  // minus the sum of the integers of all, the first and the second half
  float sum;         // of all of them, times scale
};
static_assert(sizeof(RowBlock) == 84, "no padding: rows are addressed by their blocks");

// Whether kernels of an instruction set take this many rows as digits.
constexpr int64_t kDigitRows = 4;
inline bool takes_digits(Isa isa, int64_t rows) { return isa >= Isa::avx512_bf16 && rows <= kDigitRows; }

// n = 32 · (number of blocks) floats. The integers do not depend on the instruction set.
void write_row_blocks(Isa isa, bool digits, const float* x, int64_t n, RowBlock* out);
// The values that the integers stand for.
void read_row_blocks(bool digits, const RowBlock* blocks, int64_t n, float* out);

}  // namespace fastpower
