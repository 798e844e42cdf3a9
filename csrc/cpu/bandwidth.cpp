#include "cpu/bandwidth.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace fastpower {
namespace {

constexpr int64_t kTask = 1 << 18;

// One exclusive or of every 64-bit word; eight vectors in flight.
#define FASTPOWER_READ(name, target)                                                          \
  target uint64_t name(const char* data, int64_t bytes) {                                     \
    typedef uint64_t Vec __attribute__((vector_size(64), aligned(1), may_alias));             \
    Vec sum[8] = {};                                                                          \
    int64_t i = 0;                                                                            \
    for (; i + 512 <= bytes; i += 512)                                                        \
      for (int j = 0; j < 8; ++j) sum[j] ^= *reinterpret_cast<const Vec*>(data + i + 64 * j); \
    for (int j = 1; j < 8; ++j) sum[0] ^= sum[j];                                             \
    uint64_t result = 0;                                                                      \
    for (int j = 0; j < 8; ++j) result ^= sum[0][j];                                          \
    for (; i < bytes; ++i) result ^= static_cast<unsigned char>(data[i]);                     \
    return result;                                                                            \
  }

FASTPOWER_READ(read_portable, )
#if defined(__x86_64__)
FASTPOWER_READ(read_avx2, FASTPOWER_AVX2)
FASTPOWER_READ(read_avx512, FASTPOWER_AVX512)
#endif
#undef FASTPOWER_READ

uint64_t read_some(const char* data, int64_t bytes) {
#if defined(__x86_64__)
  if (active_isa() >= Isa::avx512) return read_avx512(data, bytes);
  if (active_isa() >= Isa::avx2) return read_avx2(data, bytes);
#endif
  return read_portable(data, bytes);
}

}  // namespace

uint64_t read_memory(const void* data, int64_t bytes) {
  std::atomic<uint64_t> result{0};
  parallel_for((bytes + kTask - 1) / kTask, [&](int64_t task) {
    const int64_t start = task * kTask;
    result.fetch_xor(read_some(static_cast<const char*>(data) + start, std::min(kTask, bytes - start)));
  });
  return result.load();
}

void copy_memory(void* target, const void* source, int64_t bytes) {
  parallel_for((bytes + kTask - 1) / kTask, [&](int64_t task) {
    const int64_t start = task * kTask;
    std::memcpy(static_cast<char*>(target) + start, static_cast<const char*>(source) + start,
                std::min(kTask, bytes - start));
  });
}

uint64_t checksum(const void* data, int64_t bytes) {
  const char* const begin = static_cast<const char*>(data);
  const int64_t tasks = (bytes + kTask - 1) / kTask;
  std::vector<uint64_t> sums(static_cast<size_t>(tasks));
  // Polynomials in an odd number, eight side by side: a word that changes, or two that change places, change
  // the sum.
  constexpr uint64_t kFactor = 0x9E3779B97F4A7C15u;
  parallel_for(tasks, [&](int64_t task) {
    const char* at = begin + task * kTask;
    const int64_t n = std::min(kTask, bytes - task * kTask);
    uint64_t sum[8] = {1, 2, 3, 4, 5, 6, 7, 8}, word[8];
    int64_t i = 0;
    for (; i + 64 <= n; i += 64) {
      std::memcpy(word, at + i, 64);
      for (int j = 0; j < 8; ++j) sum[j] = sum[j] * kFactor + word[j];
    }
    std::memset(word, 0, sizeof word);
    std::memcpy(word, at + i, static_cast<size_t>(n - i));
    for (int j = 0; j < 8; ++j) sum[j] = sum[j] * kFactor + word[j];
    uint64_t total = 0;
    for (const uint64_t part : sum) total = total * kFactor + (part ^ part >> 29);
    sums[static_cast<size_t>(task)] = total;
  });
  uint64_t total = static_cast<uint64_t>(bytes);
  for (const uint64_t part : sums) total = total * kFactor + (part ^ part >> 29);
  return total;
}

}  // namespace fastpower
