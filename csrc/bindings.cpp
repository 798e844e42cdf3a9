// The only file that knows Python. Kernels take raw pointers (as integers) and sizes; the Python façade
// checks them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/isa.h"
#include "cpu/linear.h"
#include "cpu/parallel.h"

namespace py = pybind11;

namespace fastpower {
namespace {

void bind_machine(py::module_& m) {
  m.def("num_threads", &num_threads, "Threads used by the CPU kernels.");
  m.def("set_num_threads", &set_num_threads, py::arg("n"), "Set the threads used by the CPU kernels.");
  m.def("isa", [] { return isa_name(active_isa()); }, "Instruction set the CPU kernels use.");
  m.def("set_isa", [](const char* name) { set_isa(isa_from_name(name)); }, py::arg("name"));
}

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

Linear linear_of(bool bfloat16, int64_t in, int64_t out, uintptr_t panels, uintptr_t bias) {
  return {bfloat16 ? Dtype::bfloat16 : Dtype::float32, in, out, pointer<const void>(panels),
          pointer<const float>(bias)};
}

void bind_linear(py::module_& m) {
  m.def("packed_linear_bytes", [](bool bfloat16, int64_t in, int64_t out) {
    return linear_of(bfloat16, in, out, 0, 0).packed_bytes();
  });
  m.def("pack_linear",
        [](bool bfloat16, int64_t in, int64_t out, uintptr_t weight, int64_t row_stride, uintptr_t panels) {
          py::gil_scoped_release release;
          pack_linear(linear_of(bfloat16, in, out, panels, 0), pointer<const void>(weight), row_stride,
                      pointer<void>(panels));
        });
  m.def("unpack_linear", [](bool bfloat16, int64_t in, int64_t out, uintptr_t panels, uintptr_t weight) {
    unpack_linear(linear_of(bfloat16, in, out, panels, 0), pointer<void>(weight));
  });
  m.def("linear", [](bool bfloat16, int64_t in, int64_t out, uintptr_t panels, uintptr_t bias, uintptr_t x,
                     int64_t rows, int64_t x_stride, uintptr_t y, int64_t y_stride, bool bfloat16_out) {
    py::gil_scoped_release release;
    linear(linear_of(bfloat16, in, out, panels, bias), pointer<const void>(x), rows, x_stride,
           pointer<void>(y), y_stride, bfloat16_out ? Dtype::bfloat16 : Dtype::float32);
  });
}

}  // namespace
}  // namespace fastpower

PYBIND11_MODULE(_C, m) {
  m.doc() = "fastpower's C++ extension: CPU kernels and the books of pages and sequences.";
  fastpower::bind_machine(m);
  fastpower::bind_linear(m);
}
