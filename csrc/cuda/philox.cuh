// Philox 4x32-10 (Salmon et al., SC 2011), the first two words of the block: bit for bit the stream of
// kernels/reference/philox.py. Key = 64 bits, counter = (position, purpose, 0, 0).
#pragma once

#include "launch.h"

namespace fastpower {

struct Words {
  uint32_t w0, w1;
};

__device__ inline Words philox(uint64_t key, uint32_t position, uint32_t purpose) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  uint32_t c0 = position, c1 = purpose, c2 = 0, c3 = 0;
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {c0, c1};
}

// (word + 1/2) 2^-32, in (0, 1).
__device__ inline double uniform32(uint32_t word) { return (word + 0.5) * 2.3283064365386962890625e-10; }

}  // namespace fastpower
