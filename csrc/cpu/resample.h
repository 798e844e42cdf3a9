// Ancestors of particle sets from their log-weights; kernels/reference/resample.py is the specification.
#pragma once

#include <cstdint>

namespace fastpower {

enum class Scheme { systematic = 0, stratified = 1, multinomial = 2, residual = 3 };

// log_weights (sets, count); uniforms (sets, 1) for systematic, else (sets, count); index (sets, count), -1
// in a set without weight. Throws std::invalid_argument for NaN or +inf weights and uniforms outside [0, 1).
void resample(const double* log_weights, const double* uniforms, int64_t sets, int64_t count, Scheme scheme,
              int64_t* index, double* ess, double* log_mean);

}  // namespace fastpower
