// Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a random number is
// a pure function of (key, counter). Bit for bit kernels/reference/philox.py.
#pragma once

#include <array>
#include <cstdint>

namespace fastpower {

inline std::array<uint32_t, 4> philox4x32(uint64_t key, std::array<uint32_t, 4> c) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c[0], p1 = uint64_t{0xCD9E8D57} * c[2];
    c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(p0)};
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c;
}

// (word + 1/2) 2^-32, in (0, 1).
inline double uniform32(uint32_t word) { return (word + 0.5) * 0x1p-32; }

}  // namespace fastpower
