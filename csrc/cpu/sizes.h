// Products of sizes that callers gave: an overflow is an error, never a small number.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <stdexcept>

namespace fastpower {

// The product of sizes >= 0; false if it does not fit 63 bits.
inline bool product(std::initializer_list<int64_t> sizes, int64_t* out) {
  int64_t total = 1;
  for (const int64_t size : sizes)
    if (size < 0 || __builtin_mul_overflow(total, size, &total)) return false;
  *out = total;
  return true;
}

inline int64_t product(std::initializer_list<int64_t> sizes) {
  int64_t total;
  if (!product(sizes, &total))
    throw std::length_error("a tensor of so many bytes cannot be: its sizes overflow");
  return total;
}

}  // namespace fastpower
