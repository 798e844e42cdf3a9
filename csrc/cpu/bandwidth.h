// Reads and copies memory as fast as the kernels' threads can: the yardstick of the benches.
#pragma once

#include <cstdint>

namespace fastpower {

// Reads every byte once on num_threads() threads; the result depends on all of them, so nothing can be
// skipped.
uint64_t read_memory(const void* data, int64_t bytes);

// memcpy on num_threads() threads.
void copy_memory(void* target, const void* source, int64_t bytes);

// A number that depends on every byte and on where it stands; the same for every number of threads.
uint64_t checksum(const void* data, int64_t bytes);

}  // namespace fastpower
