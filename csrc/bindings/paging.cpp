// Kernels on paged keys and values.
#include <string>

#include "bindings/module.h"
#include "cpu/attention/paged_attention.h"
#include "cpu/dtype.h"
#include "cpu/paged_copy.h"

namespace py = pybind11;

namespace fastpower {

// Strides and sizes in bytes.
void bind_paged_copy(py::module_& m) {
  m.def(
      "check_slots",
      [](uintptr_t slots, int64_t tokens, int64_t num_pages, int64_t page_size) {
        check_slots(pointer<const int64_t>(slots), tokens, num_pages, page_size);
      },
      py::arg("slots"), py::arg("tokens"), py::arg("num_pages"), py::arg("page_size"));
  m.def(
      "append_kv",
      [](uintptr_t key, uintptr_t value, int64_t key_token_stride, int64_t key_head_stride,
         int64_t value_token_stride, int64_t value_head_stride, uintptr_t k_cache, uintptr_t v_cache,
         int64_t k_page_stride, int64_t v_page_stride, int64_t num_pages, int64_t page_size, int64_t heads,
         int64_t head_bytes, uintptr_t slots, int64_t tokens) {
        py::gil_scoped_release release;
        append_kv({pointer<const char>(key), pointer<const char>(value), key_token_stride, key_head_stride,
                   value_token_stride, value_head_stride, pointer<char>(k_cache), pointer<char>(v_cache),
                   k_page_stride, v_page_stride, num_pages, page_size, heads, head_bytes,
                   pointer<const int64_t>(slots), tokens});
      },
      py::arg("key"), py::arg("value"), py::arg("key_token_stride"), py::arg("key_head_stride"),
      py::arg("value_token_stride"), py::arg("value_head_stride"), py::arg("k_cache"), py::arg("v_cache"),
      py::arg("k_page_stride"), py::arg("v_page_stride"), py::arg("num_pages"), py::arg("page_size"),
      py::arg("heads"), py::arg("head_bytes"), py::arg("slots"), py::arg("tokens"));
  m.def(
      "check_copies",
      [](uintptr_t source, uintptr_t target, uintptr_t tokens, int64_t copies, int64_t num_pages,
         int64_t page_size) {
        check_copies(pointer<const int64_t>(source), pointer<const int64_t>(target),
                     pointer<const int64_t>(tokens), copies, num_pages, page_size);
      },
      py::arg("source"), py::arg("target"), py::arg("tokens"), py::arg("copies"), py::arg("num_pages"),
      py::arg("page_size"));
  m.def(
      "copy_pages",
      [](uintptr_t k_cache, uintptr_t v_cache, int64_t k_layer_stride, int64_t k_page_stride,
         int64_t v_layer_stride, int64_t v_page_stride, int64_t layers, int64_t num_pages, int64_t page_size,
         int64_t token_bytes, uintptr_t source, uintptr_t target, uintptr_t tokens, int64_t copies) {
        py::gil_scoped_release release;
        copy_pages({pointer<char>(k_cache), pointer<char>(v_cache), k_layer_stride, k_page_stride,
                    v_layer_stride, v_page_stride, layers, num_pages, page_size, token_bytes,
                    pointer<const int64_t>(source), pointer<const int64_t>(target),
                    pointer<const int64_t>(tokens), copies});
      },
      py::arg("k_cache"), py::arg("v_cache"), py::arg("k_layer_stride"), py::arg("k_page_stride"),
      py::arg("v_layer_stride"), py::arg("v_page_stride"), py::arg("layers"), py::arg("num_pages"),
      py::arg("page_size"), py::arg("token_bytes"), py::arg("source"), py::arg("target"), py::arg("tokens"),
      py::arg("copies"));
}

// Strides in elements. `check_only` validates the integer tensors and reads nothing else.
void bind_paged_attention(py::module_& m) {
  m.def(
      "paged_attention",
      [](uintptr_t query, uintptr_t k_cache, uintptr_t v_cache, uintptr_t out, const std::string& dtype,
         int64_t query_token_stride, int64_t query_head_stride, int64_t k_page_stride, int64_t v_page_stride,
         int64_t tokens, int64_t q_heads, int64_t kv_heads, int64_t head_dim, int64_t num_pages,
         int64_t page_size, uintptr_t page_table, int64_t sequences, int64_t max_pages, int64_t table_stride,
         uintptr_t query_starts, uintptr_t lengths, uintptr_t shared_starts, uintptr_t shared_pages,
         int64_t groups, double scale, int64_t window, double softcap, uintptr_t ancestors, bool check_only) {
        const PagedAttention a{pointer<const void>(query),
                               pointer<const void>(k_cache),
                               pointer<const void>(v_cache),
                               pointer<void>(out),
                               dtype_from_name(dtype),
                               query_token_stride,
                               query_head_stride,
                               k_page_stride,
                               v_page_stride,
                               tokens,
                               q_heads,
                               kv_heads,
                               head_dim,
                               num_pages,
                               page_size,
                               pointer<const int32_t>(page_table),
                               sequences,
                               max_pages,
                               table_stride,
                               pointer<const int32_t>(query_starts),
                               pointer<const int32_t>(lengths),
                               pointer<const int32_t>(shared_starts),
                               pointer<const int32_t>(shared_pages),
                               groups,
                               static_cast<float>(scale),
                               static_cast<float>(softcap),
                               window,
                               pointer<const int64_t>(ancestors)};
        py::gil_scoped_release release;
        check_only ? check_attention(a) : paged_attention(a);
      },
      py::arg("query"), py::arg("k_cache"), py::arg("v_cache"), py::arg("out"), py::arg("dtype"),
      py::arg("query_token_stride"), py::arg("query_head_stride"), py::arg("k_page_stride"),
      py::arg("v_page_stride"), py::arg("tokens"), py::arg("q_heads"), py::arg("kv_heads"),
      py::arg("head_dim"), py::arg("num_pages"), py::arg("page_size"), py::arg("page_table"),
      py::arg("sequences"), py::arg("max_pages"), py::arg("table_stride"), py::arg("query_starts"),
      py::arg("lengths"), py::arg("shared_starts"), py::arg("shared_pages"), py::arg("groups"),
      py::arg("scale"), py::arg("window"), py::arg("softcap"), py::arg("ancestors") = 0,
      py::arg("check_only") = false);
}

}  // namespace fastpower
