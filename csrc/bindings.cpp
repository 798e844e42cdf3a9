// The only file that knows Python. Kernels take raw pointers (as integers) and sizes; the Python façade checks them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/isa.h"
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

}  // namespace
}  // namespace fastpower

PYBIND11_MODULE(_C, m) {
  m.doc() = "fastpower's C++ extension: CPU kernels and the books of pages and sequences.";
  fastpower::bind_machine(m);
}
