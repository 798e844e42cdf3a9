// Moving K/V of paged caches, a cache layer being (num_pages, page_size, kv_heads, head_dim), contiguous.
//
//   append_kv   writes the K/V of new tokens into their slots (slot = page · page_size + offset), in place
//   copy_pages  copies the first tokens[i] slots of page source[i] to page target[i], in K and V of all
//   layers
//
// Both are pure byte moves: the dtype does not matter, only sizes. They move units of 16 bytes when every
// address and size allows, else the largest power of two that does.
#include "launch.h"

namespace fastpower {
namespace {

constexpr int kCopyThreads = 128;
constexpr int64_t kUnitsPerThread = 4;  // loads in flight per thread

struct alignas(16) Bytes16 {
  uint64_t lo, hi;
};

// Copies `units` units with the threads of `slices` thread blocks, of which this is number `slice`.
template <typename Unit>
__device__ void copy_units(const Unit* source, Unit* target, int64_t units, int64_t slice, int64_t slices) {
  const int64_t step = slices * kCopyThreads;
  int64_t i = slice * kCopyThreads + threadIdx.x;
  for (; i + (kUnitsPerThread - 1) * step < units; i += kUnitsPerThread * step) {
    Unit held[kUnitsPerThread];
#pragma unroll
    for (int j = 0; j < kUnitsPerThread; ++j) held[j] = source[i + j * step];
#pragma unroll
    for (int j = 0; j < kUnitsPerThread; ++j) target[i + j * step] = held[j];
  }
  for (; i < units; i += step) target[i] = source[i];
}

// Sizes and strides in units.
struct Append {
  int64_t kv_heads, head, key_token, key_head, value_token, value_head;
  int64_t slots;  // in a cache layer
};

template <typename Unit>
__global__ void __launch_bounds__(kCopyThreads) append_kv(const Unit* key, const Unit* value, Unit* k_cache,
                                                          Unit* v_cache, const int64_t* slots, Append sizes) {
  const int64_t token = blockIdx.x / 2;
  const bool is_key = blockIdx.x % 2 == 0;
  const int64_t slot = slots[token];
  if (slot < 0 || slot >= sizes.slots) return;  // padding of a captured batch; never outside the cache
  const Unit* source = is_key ? key + token * sizes.key_token : value + token * sizes.value_token;
  const int64_t head_stride = is_key ? sizes.key_head : sizes.value_head;
  const uint32_t head =
      static_cast<uint32_t>(sizes.head);  // 32 bits: a 64-bit division costs a hundred instructions
  const uint32_t units = static_cast<uint32_t>(sizes.kv_heads) * head;
  Unit* target = (is_key ? k_cache : v_cache) + slot * units;
  for (uint32_t i = threadIdx.x; i < units; i += kCopyThreads)
    target[i] = source[i / head * head_stride + i % head];
}

struct Copy {
  int64_t copies, layers, pages, page_size, token, k_layer,
      v_layer;     // token: units per slot; layer strides in units
  int64_t slices;  // thread blocks per (copy, layer, K or V)
};

template <typename Unit>
__global__ void __launch_bounds__(kCopyThreads)
    copy_pages(Unit* k_cache, Unit* v_cache, const int64_t* source, const int64_t* target,
               const int64_t* tokens, Copy sizes) {
  int64_t index = blockIdx.x;
  const int64_t slice = index % sizes.slices;
  index /= sizes.slices;
  const int64_t layer = index % sizes.layers;
  index /= sizes.layers;
  const bool is_key = index % 2 == 0;
  const int64_t copy = index / 2;
  const int64_t from = source[copy], to = target[copy];
  if (from < 0 || from >= sizes.pages || to < 0 || to >= sizes.pages) return;  // never outside the cache
  const int64_t count = tokens[copy] < sizes.page_size ? tokens[copy] : sizes.page_size;
  Unit* cache = is_key ? k_cache + layer * sizes.k_layer : v_cache + layer * sizes.v_layer;
  const int64_t page = sizes.page_size * sizes.token;
  copy_units<Unit>(cache + from * page, cache + to * page, count * sizes.token, slice, sizes.slices);
}

// The largest unit (16, 8, 4, 2 or 1 bytes) that divides all of the given addresses and byte counts.
template <typename... Values>
int common_unit(Values... values) {
  uint64_t bits = 16;
  ((bits |= static_cast<uint64_t>(values)), ...);
  return static_cast<int>(bits & (~bits + 1));
}

uint64_t address(const void* pointer) { return reinterpret_cast<uint64_t>(pointer); }

template <typename Unit>
cudaError_t run_append(const void* key, const void* value, void* k_cache, void* v_cache, const int64_t* slots,
                       int64_t tokens, Append bytes, void* stream) {
  constexpr int64_t unit = sizeof(Unit);
  const Append sizes{bytes.kv_heads,
                     bytes.head / unit,
                     bytes.key_token / unit,
                     bytes.key_head / unit,
                     bytes.value_token / unit,
                     bytes.value_head / unit,
                     bytes.slots};
  return launch(append_kv<Unit>, 2 * tokens, kCopyThreads, stream, static_cast<const Unit*>(key),
                static_cast<const Unit*>(value), static_cast<Unit*>(k_cache), static_cast<Unit*>(v_cache),
                slots, sizes);
}

template <typename Unit>
cudaError_t run_copy(void* k_cache, void* v_cache, const int64_t* source, const int64_t* target,
                     const int64_t* tokens, Copy bytes, void* stream) {
  constexpr int64_t unit = sizeof(Unit);
  Copy sizes = bytes;
  sizes.token /= unit;
  sizes.k_layer /= unit;
  sizes.v_layer /= unit;
  const int64_t per_block = kCopyThreads * kUnitsPerThread;
  const int64_t page = sizes.page_size * sizes.token;
  sizes.slices = page > per_block ? (page + per_block - 1) / per_block : 1;
  const int64_t jobs = 2 * sizes.copies * sizes.layers;
  if (jobs > kMaxGrid / sizes.slices) return cudaErrorInvalidValue;
  return launch(copy_pages<Unit>, jobs * sizes.slices, kCopyThreads, stream, static_cast<Unit*>(k_cache),
                static_cast<Unit*>(v_cache), source, target, tokens, sizes);
}

}  // namespace
}  // namespace fastpower

// Sizes and strides are in bytes; shapes as in docs/design.md. Returns a cudaError_t.
FASTPOWER_API int fastpower_append_kv(const void* key, const void* value, void* k_cache, void* v_cache,
                                      const int64_t* slots, int64_t tokens, int64_t kv_heads,
                                      int64_t head_bytes, int64_t key_token_stride, int64_t key_head_stride,
                                      int64_t value_token_stride, int64_t value_head_stride,
                                      int64_t num_slots, int device, void* stream) {
  using namespace fastpower;
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return guard.error();
  if (tokens == 0) return cudaSuccess;
  if (tokens > kMaxGrid / 2) return cudaErrorInvalidValue;
  const Append bytes{kv_heads,           head_bytes,        key_token_stride, key_head_stride,
                     value_token_stride, value_head_stride, num_slots};
  switch (common_unit(address(key), address(value), address(k_cache), address(v_cache), head_bytes,
                      key_token_stride, key_head_stride, value_token_stride, value_head_stride)) {
    case 16:
      return run_append<Bytes16>(key, value, k_cache, v_cache, slots, tokens, bytes, stream);
    case 8:
      return run_append<uint64_t>(key, value, k_cache, v_cache, slots, tokens, bytes, stream);
    case 4:
      return run_append<uint32_t>(key, value, k_cache, v_cache, slots, tokens, bytes, stream);
    case 2:
      return run_append<uint16_t>(key, value, k_cache, v_cache, slots, tokens, bytes, stream);
  }
  return cudaErrorMisalignedAddress;
}

FASTPOWER_API int fastpower_copy_pages(void* k_cache, void* v_cache, const int64_t* source,
                                       const int64_t* target, const int64_t* tokens, int64_t copies,
                                       int64_t layers, int64_t pages, int64_t page_size, int64_t token_bytes,
                                       int64_t k_layer_stride, int64_t v_layer_stride, int device,
                                       void* stream) {
  using namespace fastpower;
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return guard.error();
  if (copies == 0 || layers == 0) return cudaSuccess;
  const Copy bytes{copies, layers, pages, page_size, token_bytes, k_layer_stride, v_layer_stride, 1};
  switch (common_unit(address(k_cache), address(v_cache), token_bytes, k_layer_stride, v_layer_stride)) {
    case 16:
      return run_copy<Bytes16>(k_cache, v_cache, source, target, tokens, bytes, stream);
    case 8:
      return run_copy<uint64_t>(k_cache, v_cache, source, target, tokens, bytes, stream);
    case 4:
      return run_copy<uint32_t>(k_cache, v_cache, source, target, tokens, bytes, stream);
    case 2:
      return run_copy<uint16_t>(k_cache, v_cache, source, target, tokens, bytes, stream);
  }
  return cudaErrorMisalignedAddress;
}
