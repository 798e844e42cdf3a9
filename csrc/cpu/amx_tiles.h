// The shapes of the AMX tile registers. Only for code that runs on Isa::amx: the state of a thread's tiles
// is its own, so every thread loads them before its first tile instruction and releases them after the last.
//
// The intrinsics paste a tile's number into assembler text, so it must be a literal.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>

#include <cstdint>

#include "cpu/isa.h"

namespace fastpower {

// As LDTILECFG reads it.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};

  void set(int tile, int64_t tile_rows, int64_t row_bytes) {
    rows[tile] = static_cast<uint8_t>(tile_rows);
    bytes[tile] = static_cast<uint16_t>(row_bytes);
  }

  FASTPOWER_AMX void load() const {
    __asm__ volatile("" : : "r"(this) : "memory");  // the intrinsic tells the compiler of 8 bytes of 64
    _tile_loadconfig(this);
  }
};
static_assert(sizeof(TileConfig) == 64, "LDTILECFG reads 64 bytes");

}  // namespace fastpower
#endif
