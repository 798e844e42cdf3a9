// Token statistics and draws; docs/design.md ("sample_tokens", "score_tokens") is the contract and
// kernels/reference/sample_tokens.py the specification.
#pragma once

#include <cstdint>

#include "cpu/sampling/row_statistics.h"

namespace fastpower {

// `draws` draws; exclude may be null. Throws std::invalid_argument for values out of range (nothing is
// written then).
void sample_tokens(const Logits& logits, const float* alpha, const float* exponents, int64_t exponent_count,
                   int64_t draws, const int64_t* rows, const int64_t* keys, const int64_t* positions,
                   const int64_t* exclude, int64_t* token, float* logp, float* logz, float* entropy,
                   int32_t* status);

void score_tokens(const Logits& logits, const int64_t* tokens, const float* exponents, int64_t exponent_count,
                  float* logp, float* logz, float* entropy, int32_t* status);

}  // namespace fastpower
