// What a decoder layer does to one row between its matrix products: RMS norm, rotary embedding, gated
// activation and conversions. Every function works on one row with one fixed order of operations, so nothing
// here can make a row depend on its batch. Sums run over 16 interleaved partial sums, folded pairwise.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"
#include "cpu/isa.h"

namespace fastpower {

enum class Activation { silu, gelu_tanh };

struct RowMath {
  // out = x / sqrt(mean(x²) + eps) · weight; out may be x.
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* out);
  // (x₁, x₂) → (x₁ cos − x₂ sin, x₂ cos + x₁ sin) for the halves x₁, x₂ of x; cos and sin hold half values.
  void (*rotate)(float* x, const float* cos, const float* sin, int64_t half);
  // out = act(gate) · up
  void (*gate)(const float* gate, const float* up, int64_t n, Activation activation, float* out);
  void (*add)(const float* x, int64_t n, float* sum);  // sum += x
  void (*narrow)(const float* x, int64_t n, bfloat16* out);
  void (*widen)(const bfloat16* x, int64_t n, float* out);
};

const RowMath& row_math(Isa isa);

}  // namespace fastpower
