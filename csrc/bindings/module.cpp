// The Python module. Only the files of bindings/ know Python; kernels take raw pointers (as integers) and
// sizes, and the Python façade checks them.
#include "bindings/module.h"

#include <atomic>
#include <new>

#include "cpu/bandwidth.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/resample.h"
#include "cpu/sampling/pool_rows.h"
#include "cpu/sampling/sample_tokens.h"
#include "cpu/sizes.h"

namespace py = pybind11;

namespace fastpower {

Linear linear_of(bool bfloat16, int64_t in, int64_t out, uintptr_t panels, uintptr_t bias) {
  return {bfloat16 ? Dtype::bfloat16 : Dtype::float32, in, out, pointer<const void>(panels),
          pointer<const float>(bias)};
}

namespace {

void bind_machine(py::module_& m) {
  m.def("num_threads", &num_threads, "Threads used by the CPU kernels.");
  m.def("set_num_threads", &set_num_threads, py::arg("n"), "Set the threads used by the CPU kernels.");
  m.def("isa", [] { return isa_name(active_isa()); }, "Instruction set the CPU kernels use.");
  m.def("set_isa", [](const char* name) { set_isa(isa_from_name(name)); }, py::arg("name"));
  m.def(
      "read_memory",
      [](uintptr_t data, int64_t bytes) {
        const py::gil_scoped_release release;
        return read_memory(pointer<const void>(data), bytes);
      },
      py::arg("data"), py::arg("bytes"), "Read memory once on all threads, for measuring bandwidth.");
  m.def(
      "copy_memory",
      [](uintptr_t target, uintptr_t source, int64_t bytes) {
        const py::gil_scoped_release release;
        copy_memory(pointer<void>(target), pointer<const void>(source), bytes);
      },
      py::arg("target"), py::arg("source"), py::arg("bytes"), "memcpy on all threads.");
}

void bind_checksum(py::module_& m) {
  m.def(
      "checksum",
      [](uintptr_t data, int64_t bytes) {
        const py::gil_scoped_release release;
        return checksum(pointer<const void>(data), bytes);
      },
      py::arg("data"), py::arg("bytes"), "A number that depends on every byte and on where it stands.");
}

// The pool by itself, for its tests: how many of so many tasks ran; every failing-th throws.
void bind_pool(py::module_& m) {
  m.def(
      "run_tasks",
      [](int64_t tasks, int64_t failing) {
        std::atomic<int64_t> done{0};
        const py::gil_scoped_release release;
        parallel_for(tasks, [&](int64_t i) {
          if (failing > 0 && i % failing == failing - 1) throw std::bad_alloc();
          done.fetch_add(1, std::memory_order_relaxed);
        });
        return done.load();
      },
      py::arg("tasks"), py::arg("failing") = 0);
}

void bind_linear(py::module_& m) {
  m.def("packed_linear_bytes", [](bool bfloat16, int64_t in, int64_t out) {
    product({product({in, int64_t{4}}), out + 64});  // more than the panels take: an overflow is found here
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

// Logits travel as (address, dtype 0 = float32 | 1 = bfloat16 | 2 = float16, rows, vocab, row stride in
// elements).
void bind_sampling(py::module_& m) {
  m.def(
      "sample_tokens",
      [](uintptr_t logits, int dtype, int64_t rows, int64_t vocab, int64_t stride, uintptr_t alpha,
         uintptr_t exponents, int64_t exponent_count, int64_t draws, uintptr_t row_of, uintptr_t keys,
         uintptr_t positions, uintptr_t exclude, uintptr_t token, uintptr_t logp, uintptr_t logz,
         uintptr_t entropy, uintptr_t status) {
        const Logits z{pointer<const void>(logits), static_cast<Dtype>(dtype), rows, vocab, stride};
        const py::gil_scoped_release release;
        sample_tokens(z, pointer<const float>(alpha), pointer<const float>(exponents), exponent_count, draws,
                      pointer<const int64_t>(row_of), pointer<const int64_t>(keys),
                      pointer<const int64_t>(positions), pointer<const int64_t>(exclude),
                      pointer<int64_t>(token), pointer<float>(logp), pointer<float>(logz),
                      pointer<float>(entropy), pointer<int32_t>(status));
      },
      "Addresses of arrays as in fastpower.kernels.sample_tokens; exclude may be 0.");
  m.def(
      "score_tokens",
      [](uintptr_t logits, int dtype, int64_t rows, int64_t vocab, int64_t stride, uintptr_t tokens,
         uintptr_t exponents, int64_t exponent_count, uintptr_t logp, uintptr_t logz, uintptr_t entropy,
         uintptr_t status) {
        const Logits z{pointer<const void>(logits), static_cast<Dtype>(dtype), rows, vocab, stride};
        const py::gil_scoped_release release;
        score_tokens(z, pointer<const int64_t>(tokens), pointer<const float>(exponents), exponent_count,
                     pointer<float>(logp), pointer<float>(logz), pointer<float>(entropy),
                     pointer<int32_t>(status));
      },
      "Addresses of arrays as in fastpower.kernels.score_tokens.");
  m.def(
      "pool_rows",
      [](uintptr_t logits, int dtype, int64_t rows, int64_t vocab, int64_t stride, uintptr_t starts,
         int64_t groups, uintptr_t pooled, uintptr_t log_mass, uintptr_t status) {
        const Logits z{pointer<const void>(logits), static_cast<Dtype>(dtype), rows, vocab, stride};
        const py::gil_scoped_release release;
        pool_rows(z, pointer<const int64_t>(starts), groups, pointer<float>(pooled), pointer<float>(log_mass),
                  pointer<int32_t>(status));
      },
      "Addresses of arrays as in fastpower.kernels.pool_rows.");
  m.def(
      "resample",
      [](uintptr_t log_weights, uintptr_t uniforms, int64_t sets, int64_t count, int scheme, uintptr_t index,
         uintptr_t ess, uintptr_t log_mean) {
        const py::gil_scoped_release release;
        resample(pointer<const double>(log_weights), pointer<const double>(uniforms), sets, count,
                 static_cast<Scheme>(scheme), pointer<int64_t>(index), pointer<double>(ess),
                 pointer<double>(log_mean));
      },
      "Addresses of arrays as in fastpower.kernels.resample; scheme 0 systematic, 1 stratified, 2 "
      "multinomial, 3 residual.");
}

}  // namespace
}  // namespace fastpower

PYBIND11_MODULE(_C, m) {
  m.doc() = "fastpower's C++ extension: CPU kernels and the books of pages and sequences.";
  fastpower::bind_machine(m);
  fastpower::bind_linear(m);
  fastpower::bind_pool(m);
  fastpower::bind_checksum(m);
  fastpower::bind_quantised(m);
  fastpower::bind_sampling(m);
  fastpower::bind_books(m);
  fastpower::bind_paged_copy(m);
  fastpower::bind_paged_attention(m);
  fastpower::bind_decoder_forward(m);
  fastpower::bind_direct(m);
  fastpower::bind_arrays(m);
}
