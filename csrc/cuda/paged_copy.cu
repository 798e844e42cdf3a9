// Moving K/V of paged caches. A cache layer is (num_pages, page_size, kv_heads, head_dim); a page is
// contiguous, pages and layers may have any stride.
//
//   append_kv   writes the K/V of new tokens into their slots (slot = page · page_size + offset), in place
//   copy_pages  copies the first tokens[i] slots of page source[i] to page target[i], in K and V of all
//   layers
//
// Both are pure byte moves: the dtype does not matter, only sizes. They move units of 16 bytes when every
// address and stride allows, else the largest power of two that does.
#include <initializer_list>

#include "launch.h"

namespace fastpower {
namespace {

constexpr int kCopyThreads = 128;
constexpr int kUnitsPerThread = 4;  // loads in flight per thread

struct alignas(16) Bytes16 {
  uint64_t low, high;
};

// Sizes and strides: bytes in the C interface, units in the kernels.
struct Append {
  int64_t kv_heads, head;
  int64_t key_token, key_head, value_token, value_head;  // strides
  int64_t pages, page_size;
  int64_t k_page, v_page;  // strides
};

struct Copy {
  int64_t copies, layers, pages, page_size;
  int64_t token;                             // size of a slot
  int64_t k_layer, k_page, v_layer, v_page;  // strides
  int64_t slices;                            // thread blocks per (copy, layer, K or V)
};

// One thread block per (token, K or V).
template <typename Unit>
__global__ void __launch_bounds__(kCopyThreads) append_kv(const Unit* key, const Unit* value, Unit* k_cache,
                                                          Unit* v_cache, const int64_t* slots, Append sizes) {
  const int64_t token = blockIdx.x / 2;
  const bool is_key = blockIdx.x % 2 == 0;
  const int64_t slot = slots[token];
  if (slot < 0 || slot >= sizes.pages * sizes.page_size) return;  // padding; never outside the cache
  const int64_t page = slot / sizes.page_size, offset = slot % sizes.page_size;
  // 32 bits inside a token: a 64-bit division per unit would cost more than the copy.
  const uint32_t head = static_cast<uint32_t>(sizes.head);
  const uint32_t units = static_cast<uint32_t>(sizes.kv_heads) * head;
  const Unit* source = is_key ? key + token * sizes.key_token : value + token * sizes.value_token;
  const int64_t head_stride = is_key ? sizes.key_head : sizes.value_head;
  Unit* target = (is_key ? k_cache + page * sizes.k_page : v_cache + page * sizes.v_page) + offset * units;
  for (uint32_t i = threadIdx.x; i < units; i += kCopyThreads)
    target[i] = source[i / head * head_stride + i % head];
}

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
  const int64_t slots = tokens[copy] < sizes.page_size ? tokens[copy] : sizes.page_size;
  const int64_t units = slots * sizes.token;
  Unit* cache = is_key ? k_cache + layer * sizes.k_layer : v_cache + layer * sizes.v_layer;
  const int64_t page = is_key ? sizes.k_page : sizes.v_page;
  const Unit* in = cache + from * page;
  Unit* out = cache + to * page;

  const int64_t step = sizes.slices * kCopyThreads;
  int64_t i = slice * kCopyThreads + threadIdx.x;
  for (; i + (kUnitsPerThread - 1) * step < units; i += kUnitsPerThread * step) {
    Unit held[kUnitsPerThread];
#pragma unroll
    for (int j = 0; j < kUnitsPerThread; ++j) held[j] = in[i + j * step];
#pragma unroll
    for (int j = 0; j < kUnitsPerThread; ++j) out[i + j * step] = held[j];
  }
  for (; i < units; i += step) out[i] = in[i];
}

// The largest unit (16, 8, 4, 2 or 1 bytes) that divides all of the given addresses and byte counts.
int common_unit(std::initializer_list<int64_t> values) {
  uint64_t bits = 16;
  for (int64_t value : values) bits |= static_cast<uint64_t>(value);
  return static_cast<int>(bits & (~bits + 1));
}

int64_t address(const void* pointer) { return reinterpret_cast<int64_t>(pointer); }

// Calls run(unit of 16, 8, 4 or 2 bytes).
template <typename Run>
cudaError_t with_unit(int bytes, const Run& run) {
  switch (bytes) {
    case 16:
      return run(Bytes16());
    case 8:
      return run(uint64_t());
    case 4:
      return run(uint32_t());
    case 2:
      return run(uint16_t());
  }
  return cudaErrorMisalignedAddress;
}

}  // namespace
}  // namespace fastpower

// Sizes and strides are in bytes; shapes as in docs/design.md. Returns a cudaError_t.
FASTPOWER_API int fastpower_append_kv(const void* key, const void* value, void* k_cache, void* v_cache,
                                      const int64_t* slots, int64_t tokens, int64_t kv_heads,
                                      int64_t head_bytes, int64_t key_token_stride, int64_t key_head_stride,
                                      int64_t value_token_stride, int64_t value_head_stride, int64_t pages,
                                      int64_t page_size, int64_t k_page_stride, int64_t v_page_stride,
                                      int device, void* stream) {
  using namespace fastpower;
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return guard.error();
  if (tokens == 0) return cudaSuccess;
  if (tokens > kMaxGrid / 2) return cudaErrorInvalidValue;
  const int bytes = common_unit({address(key), address(value), address(k_cache), address(v_cache), head_bytes,
                                 key_token_stride, key_head_stride, value_token_stride, value_head_stride,
                                 k_page_stride, v_page_stride});
  return with_unit(bytes, [&](auto unit) {
    using Unit = decltype(unit);
    const Append sizes{kv_heads,
                       head_bytes / bytes,
                       key_token_stride / bytes,
                       key_head_stride / bytes,
                       value_token_stride / bytes,
                       value_head_stride / bytes,
                       pages,
                       page_size,
                       k_page_stride / bytes,
                       v_page_stride / bytes};
    return launch(append_kv<Unit>, 2 * tokens, kCopyThreads, stream, static_cast<const Unit*>(key),
                  static_cast<const Unit*>(value), static_cast<Unit*>(k_cache), static_cast<Unit*>(v_cache),
                  slots, sizes);
  });
}

FASTPOWER_API int fastpower_copy_pages(void* k_cache, void* v_cache, const int64_t* source,
                                       const int64_t* target, const int64_t* tokens, int64_t copies,
                                       int64_t layers, int64_t pages, int64_t page_size, int64_t token_bytes,
                                       int64_t k_layer_stride, int64_t k_page_stride, int64_t v_layer_stride,
                                       int64_t v_page_stride, int device, void* stream) {
  using namespace fastpower;
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return guard.error();
  if (copies == 0 || layers == 0) return cudaSuccess;
  const int bytes = common_unit({address(k_cache), address(v_cache), token_bytes, k_layer_stride,
                                 k_page_stride, v_layer_stride, v_page_stride});
  return with_unit(bytes, [&](auto unit) {
    using Unit = decltype(unit);
    const int64_t per_block = kCopyThreads * kUnitsPerThread;
    const int64_t slices = (page_size * token_bytes / bytes + per_block - 1) / per_block;
    if (2 * copies * layers > kMaxGrid / slices) return cudaErrorInvalidValue;
    const Copy sizes{copies,
                     layers,
                     pages,
                     page_size,
                     token_bytes / bytes,
                     k_layer_stride / bytes,
                     k_page_stride / bytes,
                     v_layer_stride / bytes,
                     v_page_stride / bytes,
                     slices};
    return launch(copy_pages<Unit>, 2 * copies * layers * slices, kCopyThreads, stream,
                  static_cast<Unit*>(k_cache), static_cast<Unit*>(v_cache), source, target, tokens, sizes);
  });
}
