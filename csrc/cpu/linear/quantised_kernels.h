// Products of a few rows or of a tile of rows with one panel of quantised weights.
//
// An output is Σ over blocks, in ascending order, of  a · (scale · Σ_block x (q − offset)) − b · scale ·
// Σ_block x: the inner sums are of integers, and each block adds to one float32 accumulator per output with
// one fused multiply-add, and one more for b (two roundings each on portable). Every kernel here computes
// exactly that, so a row has the same bits from any of them.
#pragma once

#include "cpu/linear/quantised_panels.h"
#include "cpu/linear/quantised_rows.h"

namespace fastpower {

// rows: of RowBlocks, `stride` bytes apart, all digits or all words (digits: at most kDigitRows rows, where
// takes_digits). next: bytes that this thread will read next, fetched ahead. acc (rows, 32), 64-byte aligned,
// is written.
using QuantisedKernel = void (*)(Format format, int64_t in, const char* panel, const char* next, bool digits,
                                 const char* rows, int64_t stride, int64_t count, float* acc);

QuantisedKernel quantised_kernel(Isa isa);

// One block of a panel as kernels of words multiply it: vectors (i, h) as (2 i, h) and (2 i + 1, h) of pairs
// of 16-bit integers, inputs (0, 2) and (1, 3) of every four, and float32 scales; a of both halves of the
// inputs.
struct UnpackedBlock {
  alignas(64) int16_t words[1024];
  alignas(64) float a[2][kColumns];
  alignas(64) float b[kColumns];
};

// Kernels of each instruction set, in quantised_<isa>.cpp.
void quantised_portable(Format, int64_t, const char*, const char*, bool, const char*, int64_t, int64_t,
                        float*);
void quantised_avx2(Format, int64_t, const char*, const char*, bool, const char*, int64_t, int64_t, float*);
void quantised_avx512(Format, int64_t, const char*, const char*, bool, const char*, int64_t, int64_t, float*);
void quantised_vnni(Format, int64_t, const char*, const char*, bool, const char*, int64_t, int64_t, float*);

}  // namespace fastpower
