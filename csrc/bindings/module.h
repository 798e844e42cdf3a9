// What the files of the Python module share; included by csrc/bindings*.cpp only.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "cpu/linear/linear.h"

namespace fastpower {

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// A linear layer as Python hands it over: the address of its panels, and of its bias or 0.
Linear linear_of(bool bfloat16, int64_t in, int64_t out, uintptr_t panels, uintptr_t bias);
// One of quantised weights, whose type is a number of GGUF. Throws std::invalid_argument.
Linear quantised_of(int64_t type, int64_t in, int64_t out, uintptr_t panels, uintptr_t bias);

void bind_books(pybind11::module_& m);            // bindings_books.cpp
void bind_paged_copy(pybind11::module_& m);       // bindings_paging.cpp
void bind_paged_attention(pybind11::module_& m);  // bindings_paging.cpp
void bind_decoder_forward(pybind11::module_& m);  // bindings_decoder.cpp
void bind_quantised(pybind11::module_& m);        // quantised.cpp
void bind_direct(pybind11::module_& m);
void bind_arrays(pybind11::module_& m);  // bindings_direct.cpp

}  // namespace fastpower
