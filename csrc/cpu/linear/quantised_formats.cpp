#include "cpu/linear/quantised_formats.h"

#include <cstring>
#include <stdexcept>
#include <string>

namespace fastpower {
namespace {

uint16_t half_at(const uint8_t* at) {
  uint16_t bits;
  std::memcpy(&bits, at, 2);
  return bits;
}

float value(uint16_t half) { return to_float(float16{half}); }

// 32 numbers of 4 bits as Q4_0 … Q5_1 keep them: the low halves of 16 bytes, then the high ones.
void nibbles(const uint8_t* qs, uint8_t* q) {
  for (int j = 0; j < 16; ++j) {
    q[j] = qs[j] & 15;
    q[j + 16] = qs[j] >> 4;
  }
}

void fifth_bits(const uint8_t* qh, uint8_t* q) {
  uint32_t bits;
  std::memcpy(&bits, qh, 4);
  for (int j = 0; j < 32; ++j) q[j] = static_cast<uint8_t>(q[j] | (bits >> j & 1u) << 4);
}

// Eight pairs of 6-bit numbers in 12 bytes, as Q4_K and Q5_K keep them.
void scale_and_min(const uint8_t* s, int64_t j, FileBlock* block) {
  if (j < 4) {
    block->scale[0] = static_cast<int8_t>(s[j] & 63);
    block->min = s[j + 4] & 63;
  } else {
    block->scale[0] = static_cast<int8_t>((s[j + 4] & 15) | (s[j - 4] >> 6) << 4);
    block->min = static_cast<uint8_t>((s[j + 4] >> 4) | (s[j] >> 6) << 4);
  }
  block->scale[1] = block->scale[0];
}

}  // namespace

Format format_from_type(int64_t type) {
  for (Format f : {Format::q4_0, Format::q4_1, Format::q5_0, Format::q5_1, Format::q8_0, Format::q4_k,
                   Format::q5_k, Format::q6_k})
    if (static_cast<int64_t>(f) == type) return f;
  throw std::invalid_argument(
      "type " + std::to_string(type) +
      " is not one of Q4_0 (2), Q4_1 (3), Q5_0 (6), Q5_1 (7), Q8_0 (8), Q4_K (12), Q5_K (13), "
      "Q6_K (14)");
}

FileBlock read_block(Format format, const void* row, int64_t block) {
  FileBlock out{{}, 0, 0, {1, 1}, 1};
  const int64_t super = block / (file_block(format) / kQuantBlock),
                part = block % (file_block(format) / kQuantBlock);
  const uint8_t* at = static_cast<const uint8_t*>(row) + super * file_block_bytes(format);
  switch (format) {
    case Format::q4_0:
      out.d = half_at(at);
      nibbles(at + 2, out.q);
      break;
    case Format::q4_1:
      out.d = half_at(at);
      out.m = half_at(at + 2);
      nibbles(at + 4, out.q);
      break;
    case Format::q5_0:
      out.d = half_at(at);
      nibbles(at + 6, out.q);
      fifth_bits(at + 2, out.q);
      break;
    case Format::q5_1:
      out.d = half_at(at);
      out.m = half_at(at + 2);
      nibbles(at + 8, out.q);
      fifth_bits(at + 4, out.q);
      break;
    case Format::q8_0:
      out.d = half_at(at);
      for (int j = 0; j < 32; ++j) out.q[j] = at[2 + j] ^ 0x80u;  // signed → plus 128
      break;
    case Format::q4_k:
    case Format::q5_k: {
      out.d = half_at(at);
      out.m = half_at(at + 2);
      scale_and_min(at + 4, part, &out);
      const bool fifth = format == Format::q5_k;
      const uint8_t* qs = at + (fifth ? 48 : 16) + part / 2 * 32;
      const int shift = part % 2 * 4;
      for (int j = 0; j < 32; ++j) out.q[j] = (qs[j] >> shift) & 15;
      if (fifth)
        for (int j = 0; j < 32; ++j)
          out.q[j] = static_cast<uint8_t>(out.q[j] | (at[16 + j] >> part & 1) << 4);
      break;
    }
    case Format::q6_k: {
      out.d = half_at(at + 208);
      const uint8_t *low = at + part / 4 * 64 + part % 2 * 32, *high = at + 128 + part / 4 * 32;
      const int low_shift = part % 4 / 2 * 4, high_shift = static_cast<int>(part % 4) * 2;
      for (int j = 0; j < 32; ++j)
        out.q[j] = static_cast<uint8_t>((low[j] >> low_shift & 15) | (high[j] >> high_shift & 3) << 4);
      std::memcpy(out.scale, at + 192 + 2 * part, 2);
      break;
    }
    default:
      break;
  }
  return out;
}

BlockScales scales_of(Format format, const FileBlock& block) {
  const float d = value(block.d), m = value(block.m);
  BlockScales s{{d * static_cast<float>(block.scale[0]), d * static_cast<float>(block.scale[1])}, 0.0f};
  if (has_min(format)) s.b = is_super(format) ? m * static_cast<float>(block.min) : -m;
  return s;
}

void dequantise_block(Format format, const FileBlock& block, float* out) {
  const BlockScales s = scales_of(format, block);
  const int offset = offset_of(format);
  for (int64_t j = 0; j < kQuantBlock; ++j) out[j] = s.a[j / 16] * static_cast<float>(block.q[j] - offset);
  if (has_min(format))
    for (int64_t j = 0; j < kQuantBlock; ++j) out[j] -= s.b;
}

void dequantise_row(Format format, const void* row, int64_t n, float* out) {
  for (int64_t block = 0; block < n / kQuantBlock; ++block)
    dequantise_block(format, read_block(format, row, block), out + block * kQuantBlock);
}

}  // namespace fastpower
