// The CPU kernels behind the C interface of fastpower.h, for engines without Python: libfastpower_cpu.so is
// this file and csrc/cpu. Sizes, strides and pointers are checked here, values by the kernels; both before
// anything is written. No exception leaves.
#define FASTPOWER_API extern "C" __attribute__((visibility("default")))
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <new>
#include <stdexcept>
#include <string>

#include "../../fastpower/include/fastpower.h"
#include "cpu/attention/paged_attention.h"
#include "cpu/paged_copy.h"
#include "cpu/parallel.h"
#include "cpu/resample.h"
#include "cpu/sampling/sample_tokens.h"
#include "cpu/sizes.h"

namespace {

constexpr double kLargest = 18446744073709551616.0;  // 2^64: scores are float32

std::string& last_error() {
  thread_local std::string mine;
  return mine;
}

int fail(int code, const char* what) noexcept {
  try {
    last_error() = what;
  } catch (...) {  // no room for the words: the code stands
  }
  return code;
}

template <class Work>
int guarded(const Work& work) noexcept {
  try {
    last_error().clear();
    work();
    return FASTPOWER_OK;
  } catch (const std::out_of_range& error) {
    return fail(FASTPOWER_OUT_OF_RANGE, error.what());
  } catch (const std::bad_alloc&) {
    return fail(FASTPOWER_OUT_OF_MEMORY, "out of memory");
  } catch (const std::logic_error& error) {  // invalid_argument, length_error
    return fail(FASTPOWER_INVALID_ARGUMENT, error.what());
  } catch (const std::exception& error) {
    return fail(FASTPOWER_INTERNAL_ERROR, error.what());
  } catch (...) {
    return fail(FASTPOWER_INTERNAL_ERROR, "unknown error");
  }
}

// Arguments of one call; names it in what it throws.
struct Checks {
  const char* op;

  [[noreturn]] void refuse(const char* name, const std::string& why) const {
    throw std::invalid_argument(std::string(op) + ": " + name + " " + why);
  }
  void size(const char* name, int64_t value, int64_t least = 0) const {
    if (value < least)
      refuse(name, "must be at least " + std::to_string(least) + ", got " + std::to_string(value));
  }
  // The product of sizes, which may be anything.
  int64_t product(std::initializer_list<int64_t> sizes) const {
    int64_t total;
    if (!fastpower::product(sizes, &total)) refuse("a size", "is too large: the bytes overflow");
    return total;
  }
  // A pointer to so many entries, each of `alignment` bytes.
  void pointer(const char* name, const void* p, std::initializer_list<int64_t> sizes,
               int64_t alignment = 1) const {
    if (product(sizes) == 0) return;
    if (p == nullptr) refuse(name, "is null");
    if (reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(alignment))
      refuse(name, "is not aligned to " + std::to_string(alignment) + " bytes");
  }
  fastpower::Dtype dtype(int code) const {
    if (code < FASTPOWER_FLOAT32 || code > FASTPOWER_FLOAT16)
      refuse("dtype", "must be 0 (float32), 1 (bfloat16) or 2 (float16), got " + std::to_string(code));
    return static_cast<fastpower::Dtype>(code);
  }
  fastpower::Logits logits(const void* data, int code, int64_t rows, int64_t vocab, int64_t stride) const {
    const fastpower::Dtype type = dtype(code);
    size("rows", rows);
    size("vocab", vocab, 1);
    if (rows > 1) size("row_stride", stride, 0);
    product({rows, stride > vocab ? stride : vocab, fastpower::size_of(type)});
    pointer("logits", data, {rows, vocab}, fastpower::size_of(type));
    return {data, type, rows, vocab, stride};
  }
  // Two caches that are written: pages must not share memory.
  void pages_apart(int64_t pages, int64_t page, int64_t k_stride, int64_t v_stride) const {
    if (pages > 1) {
      size("k_page_stride", k_stride, page);
      size("v_page_stride", v_stride, page);
      product({pages, k_stride});
      product({pages, v_stride});
    }
  }
};

}  // namespace

using namespace fastpower;

FASTPOWER_API int fastpower_cpu_abi_version() { return FASTPOWER_ABI_VERSION; }
FASTPOWER_API const char* fastpower_cpu_last_error() { return last_error().c_str(); }
FASTPOWER_API int fastpower_cpu_num_threads() { return num_threads(); }
FASTPOWER_API int fastpower_cpu_set_num_threads(int threads) {
  return guarded([&] { set_num_threads(threads); });
}

FASTPOWER_API int fastpower_cpu_sample_tokens(const void* logits, int dtype, int64_t rows, int64_t vocab,
                                              int64_t row_stride, const float* alpha, const float* exponents,
                                              int64_t num_exponents, const int64_t* draw_rows,
                                              const int64_t* keys, const int64_t* positions,
                                              const int64_t* exclude, int64_t num_draws, int64_t* token,
                                              float* logp, float* logz, float* entropy, int32_t* status) {
  return guarded([&] {
    const Checks check{"fastpower_cpu_sample_tokens"};
    const Logits z = check.logits(logits, dtype, rows, vocab, row_stride);
    check.size("num_exponents", num_exponents);
    check.size("num_draws", num_draws);
    check.product({rows, num_exponents + 8, z.blocks(), int64_t{64}});  // what it works in
    check.pointer("alpha", alpha, {rows}, 4);
    check.pointer("exponents", exponents, {num_exponents}, 4);
    check.pointer("draw_rows", draw_rows, {num_draws}, 8);
    check.pointer("keys", keys, {num_draws}, 8);
    check.pointer("positions", positions, {num_draws}, 8);
    check.pointer("token", token, {num_draws}, 8);
    check.pointer("logp", logp, {num_draws}, 4);
    check.pointer("logz", logz, {rows, num_exponents}, 4);
    check.pointer("entropy", entropy, {rows}, 4);
    check.pointer("status", status, {rows}, 4);
    sample_tokens(z, alpha, exponents, num_exponents, num_draws, draw_rows, keys, positions, exclude, token,
                  logp, logz, entropy, status);
  });
}

FASTPOWER_API int fastpower_cpu_score_tokens(const void* logits, int dtype, int64_t rows, int64_t vocab,
                                             int64_t row_stride, const int64_t* tokens,
                                             const float* exponents, int64_t num_exponents, float* logp,
                                             float* logz, float* entropy, int32_t* status) {
  return guarded([&] {
    const Checks check{"fastpower_cpu_score_tokens"};
    const Logits z = check.logits(logits, dtype, rows, vocab, row_stride);
    check.size("num_exponents", num_exponents);
    check.product({rows, num_exponents + 8, z.blocks(), int64_t{64}});
    check.pointer("tokens", tokens, {rows}, 8);
    check.pointer("exponents", exponents, {num_exponents}, 4);
    check.pointer("logp", logp, {rows}, 4);
    check.pointer("logz", logz, {rows, num_exponents}, 4);
    check.pointer("entropy", entropy, {rows}, 4);
    check.pointer("status", status, {rows}, 4);
    score_tokens(z, tokens, exponents, num_exponents, logp, logz, entropy, status);
  });
}

FASTPOWER_API int fastpower_cpu_paged_attention(
    const void* query, const void* k_cache, const void* v_cache, void* out, int dtype, int64_t queries,
    int64_t query_heads, int64_t kv_heads, int64_t dim, int64_t query_token_stride, int64_t query_head_stride,
    int64_t pages, int64_t page_size, int64_t k_page_stride, int64_t v_page_stride, const int32_t* page_table,
    const int32_t* query_starts, const int32_t* lengths, int64_t sequences, int64_t max_pages,
    const int32_t* shared_starts, const int32_t* shared_pages, int64_t groups, float scale, int64_t window,
    float softcap, const int64_t* ancestors) {
  return guarded([&] {
    const Checks check{"fastpower_cpu_paged_attention"};
    const Dtype type = check.dtype(dtype);
    const int64_t width = size_of(type);
    check.size("queries", queries);
    check.size("kv_heads", kv_heads, 1);
    if (query_heads < kv_heads || query_heads % kv_heads)
      check.refuse("query_heads", "must be a multiple of kv_heads, got " + std::to_string(query_heads) +
                                      " and " + std::to_string(kv_heads));
    if (dim < 8 || dim > 256 || dim % 8)
      check.refuse("dim", "must be a multiple of 8, at most 256, got " + std::to_string(dim));
    check.size("pages", pages);
    check.size("page_size", page_size, 1);
    check.size("sequences", sequences);
    check.size("max_pages", max_pages);
    check.size("groups", groups);
    check.size("window", window);
    if (!(std::abs(static_cast<double>(scale)) <= kLargest))
      check.refuse("scale", "must be finite, at most 2^64");
    if (!(softcap == 0 || (softcap >= 1 / kLargest && softcap <= kLargest)))
      check.refuse("softcap", "must be 0 (none) or lie in [2^-64, 2^64]");
    if (window > 0 && ancestors) check.refuse("ancestors", "do not go with a window");
    if (queries > 0 && sequences == 0) check.refuse("sequences", "is 0, but there are queries");
    check.product({queries, query_heads, dim, width});
    check.product({pages, page_size, kv_heads, dim, width});
    check.product({sequences, max_pages, int64_t{4}});
    check.product({max_pages, page_size});
    check.pointer("query", query, {queries, query_heads, dim}, width);
    check.pointer("out", out, {queries, query_heads, dim}, width);
    check.pointer("k_cache", k_cache, {pages, page_size}, width);
    check.pointer("v_cache", v_cache, {pages, page_size}, width);
    check.pointer("page_table", page_table, {sequences, max_pages}, 4);
    check.pointer("query_starts", query_starts, {sequences + 1}, 4);
    check.pointer("lengths", lengths, {sequences}, 4);
    if (groups > 0) {
      check.pointer("shared_starts", shared_starts, {groups + 1}, 4);
      check.pointer("shared_pages", shared_pages, {groups}, 4);
    }
    paged_attention({query,
                     k_cache,
                     v_cache,
                     out,
                     type,
                     query_token_stride,
                     query_head_stride,
                     k_page_stride,
                     v_page_stride,
                     queries,
                     query_heads,
                     kv_heads,
                     dim,
                     pages,
                     page_size,
                     page_table,
                     sequences,
                     max_pages,
                     max_pages,
                     query_starts,
                     lengths,
                     shared_starts,
                     shared_pages,
                     groups,
                     scale,
                     softcap,
                     window,
                     ancestors});
  });
}

FASTPOWER_API int fastpower_cpu_append_kv(const void* key, const void* value, void* k_cache, void* v_cache,
                                          const int64_t* slots, int64_t tokens, int64_t kv_heads,
                                          int64_t head_bytes, int64_t key_token_stride,
                                          int64_t key_head_stride, int64_t value_token_stride,
                                          int64_t value_head_stride, int64_t pages, int64_t page_size,
                                          int64_t k_page_stride, int64_t v_page_stride) {
  return guarded([&] {
    const Checks check{"fastpower_cpu_append_kv"};
    check.size("tokens", tokens);
    check.size("kv_heads", kv_heads);
    check.size("head_bytes", head_bytes);
    check.size("pages", pages);
    check.size("page_size", page_size, 1);
    const int64_t page = check.product({page_size, kv_heads, head_bytes});
    check.product({pages, page});
    check.pages_apart(pages, page, k_page_stride, v_page_stride);
    check.pointer("key", key, {tokens, kv_heads, head_bytes});
    check.pointer("value", value, {tokens, kv_heads, head_bytes});
    check.pointer("k_cache", k_cache, {pages, page});
    check.pointer("v_cache", v_cache, {pages, page});
    check.pointer("slots", slots, {tokens}, 8);
    append_kv({static_cast<const char*>(key), static_cast<const char*>(value), key_token_stride,
               key_head_stride, value_token_stride, value_head_stride, static_cast<char*>(k_cache),
               static_cast<char*>(v_cache), k_page_stride, v_page_stride, pages, page_size, kv_heads,
               head_bytes, slots, tokens});
  });
}

FASTPOWER_API int fastpower_cpu_copy_pages(void* k_cache, void* v_cache, const int64_t* source,
                                           const int64_t* target, const int64_t* tokens, int64_t copies,
                                           int64_t layers, int64_t pages, int64_t page_size,
                                           int64_t token_bytes, int64_t k_layer_stride, int64_t k_page_stride,
                                           int64_t v_layer_stride, int64_t v_page_stride) {
  return guarded([&] {
    const Checks check{"fastpower_cpu_copy_pages"};
    check.size("copies", copies);
    check.size("layers", layers);
    check.size("pages", pages);
    check.size("page_size", page_size, 1);
    check.size("token_bytes", token_bytes);
    const int64_t page = check.product({page_size, token_bytes});
    check.product({layers, pages, page});
    check.pages_apart(pages, page, k_page_stride, v_page_stride);
    check.pointer("k_cache", k_cache, {layers, pages, page});
    check.pointer("v_cache", v_cache, {layers, pages, page});
    check.pointer("source", source, {copies}, 8);
    check.pointer("target", target, {copies}, 8);
    check.pointer("tokens", tokens, {copies}, 8);
    copy_pages({static_cast<char*>(k_cache), static_cast<char*>(v_cache), k_layer_stride, k_page_stride,
                v_layer_stride, v_page_stride, layers, pages, page_size, token_bytes, source, target, tokens,
                copies});
  });
}

FASTPOWER_API int fastpower_cpu_resample(const double* log_weights, const double* uniforms, int64_t sets,
                                         int64_t count, int scheme, int64_t* index, double* ess,
                                         double* log_mean) {
  return guarded([&] {
    const Checks check{"fastpower_cpu_resample"};
    check.size("sets", sets);
    check.size("count", count, 1);
    if (scheme < 0 || scheme > 3) check.refuse("scheme", "must lie in 0 to 3, got " + std::to_string(scheme));
    check.product({sets, count, int64_t{8}});
    check.pointer("log_weights", log_weights, {sets, count}, 8);
    check.pointer("uniforms", uniforms, {sets, scheme == 0 ? 1 : count}, 8);
    check.pointer("index", index, {sets, count}, 8);
    check.pointer("ess", ess, {sets}, 8);
    check.pointer("log_mean", log_mean, {sets}, 8);
    resample(log_weights, uniforms, sets, count, static_cast<Scheme>(scheme), index, ess, log_mean);
  });
}
