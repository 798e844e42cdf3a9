// Products with quantised weights.
#include <stdexcept>
#include <string>

#include "bindings/module.h"
#include "cpu/sizes.h"

namespace py = pybind11;

namespace fastpower {

Linear quantised_of(int64_t type, int64_t in, int64_t out, uintptr_t panels, uintptr_t bias) {
  const Format format = format_from_type(type);
  if (in < 1 || in % file_block(format))
    throw std::invalid_argument("in must be a positive multiple of " + std::to_string(file_block(format)) +
                                " for type " + std::to_string(type) + ", got " + std::to_string(in));
  if (out < 1) throw std::invalid_argument("out must be at least 1, got " + std::to_string(out));
  product(
      {product({in, int64_t{4}}), out + 64});  // more than panels or floats take: an overflow is found here
  return {Dtype::float32, in, out, pointer<const void>(panels), pointer<const float>(bias), format};
}

// type: as in GGUF files. Addresses as in fastpower.kernels.quantised.
void bind_quantised(py::module_& m) {
  m.def(
      "ask_for_huge_pages",
      [](uintptr_t data, int64_t bytes) { ask_for_huge_pages(pointer<void>(data), bytes); }, py::arg("data"),
      py::arg("bytes"));
  m.def("quantised_bytes", [](int64_t type, int64_t in, int64_t out) {
    return quantised_of(type, in, out, 0, 0).packed_bytes();
  });
  m.def(
      "pack_quantised",
      [](int64_t type, int64_t in, int64_t out, uintptr_t rows, uintptr_t panels) {
        const Linear linear = quantised_of(type, in, out, panels, 0);
        const py::gil_scoped_release release;
        pack_quantised_linear(linear, pointer<const uint64_t>(rows), pointer<void>(panels));
      },
      "rows: (out,) uint64, where each row begins in memory.");
  m.def("unpack_quantised", [](int64_t type, int64_t in, int64_t out, uintptr_t panels, uintptr_t weight) {
    const Linear linear = quantised_of(type, in, out, panels, 0);
    const py::gil_scoped_release release;
    unpack_linear(linear, pointer<void>(weight));
  });
  m.def(
      "dequantise",
      [](int64_t type, int64_t in, int64_t rows, uintptr_t blocks, uintptr_t out) {
        const Linear linear = quantised_of(type, in, rows, 0, 0);
        const int64_t bytes = in / file_block(linear.format) * file_block_bytes(linear.format);
        const py::gil_scoped_release release;
        parallel_for(rows, [&](int64_t i) {
          dequantise_row(linear.format, pointer<const char>(blocks) + i * bytes, in,
                         pointer<float>(out) + i * in);
        });
      },
      "Rows of a file, one after the other, as float32.");
  m.def("quantised_linear", [](int64_t type, int64_t in, int64_t out, uintptr_t panels, uintptr_t bias,
                               uintptr_t x, bool bfloat16, int64_t rows, int64_t x_stride, uintptr_t y,
                               int64_t y_stride, bool bfloat16_out) {
    const Linear packed = quantised_of(type, in, out, panels, bias);
    const py::gil_scoped_release release;
    linear(packed, pointer<const void>(x), rows, x_stride, pointer<void>(y), y_stride,
           bfloat16_out ? Dtype::bfloat16 : Dtype::float32, bfloat16 ? Dtype::bfloat16 : Dtype::float32);
  });
}

}  // namespace fastpower
