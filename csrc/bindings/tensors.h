// Torch's tensors seen from C++ without torch's headers: the C exchange API of DLPack 1.3
// (github.com/dmlc/dlpack, include/dlpack/dlpack.h), which torch.Tensor offers as __dlpack_c_exchange_api__.
// The structures below are its binary interface; names are ours. Included by direct.cpp and arrays.cpp only.
#pragma once

#include <Python.h>

#include <cstdint>

#include "cpu/dtype.h"

namespace fastpower {

struct DlpackVersion {
  uint32_t major, minor;
};
struct DlpackDevice {
  int32_t type, id;
};
struct DlpackType {
  uint8_t code, bits;
  uint16_t lanes;
};
struct DlpackTensor {
  void* data;
  DlpackDevice device;
  int32_t ndim;
  DlpackType dtype;
  int64_t *shape, *strides;  // the tensor's own
  uint64_t byte_offset;
};
struct DlpackManaged {
  DlpackVersion version;
  void* context;
  void (*deleter)(DlpackManaged*);
  uint64_t flags;
  DlpackTensor tensor;
};
struct DlpackExchange {
  DlpackVersion version;
  DlpackExchange* previous;  // an older major version
  int (*allocate)(DlpackTensor* prototype, DlpackManaged** out, void* context,
                  void (*set_error)(void* context, const char* kind, const char* message));
  int (*managed_from_object)(void* object, DlpackManaged** out);
  int (*object_from_managed)(DlpackManaged* tensor, void** out);  // takes the tensor
  int (*tensor_from_object)(void* object, DlpackTensor* out);     // borrows
  int (*current_stream)(int32_t device_type, int32_t device_id, void** out);
};

// A tensor on the CPU, borrowed: valid while the tensor lives and keeps its shape.
class View {
 public:
  // False unless the object is exactly a tensor, on the CPU. Never leaves a Python error behind.
  bool of(PyObject* object);

  int ndim() const { return tensor_.ndim; }
  int64_t size(int i) const { return tensor_.shape[i]; }
  int64_t stride(int i) const { return tensor_.strides[i]; }
  int64_t entry_bytes() const { return tensor_.dtype.bits / 8; }
  template <class T>
  T* data() const {
    return reinterpret_cast<T*>(static_cast<char*>(tensor_.data) + tensor_.byte_offset);
  }

  template <class T>
  bool holds() const;
  bool floats() const { return holds<float>() || holds<bfloat16>() || holds<float16>(); }
  bool same_dtype(const View& other) const;
  Dtype dtype() const;  // of floats

  // One dimension of n entries (any number if n < 0), next to each other.
  template <class T>
  bool vector(int64_t n = -1) const {
    return ndim() == 1 && holds<T>() && (n < 0 || size(0) == n) && (stride(0) == 1 || size(0) <= 1);
  }
  // Rows of `columns` entries, one behind the other.
  template <class T>
  bool matrix(int64_t rows, int64_t columns) const {
    return ndim() == 2 && holds<T>() && size(0) == rows && size(1) == columns && contiguous();
  }
  bool contiguous() const;
  // Whether the memory from a tensor's first entry to its last meets the other's.
  bool overlaps(const View& other) const;
  bool rows_are_dense() const { return stride(ndim() - 1) == 1 || size(ndim() - 1) <= 1; }

 private:
  DlpackTensor tensor_;
};

// Where the tensors of a Python type come from; false if the type does not offer DLPack's C exchange API,
// version 1. Called once, with torch.Tensor.
bool use_tensors_of(PyObject* type);

// A new contiguous tensor on the CPU, its contents undefined; null, with a Python error, if there is none. T
// is one of the types that View::holds knows.
template <class T>
PyObject* empty(std::initializer_list<int64_t> shape, T** data);
PyObject* empty_of(Dtype dtype, std::initializer_list<int64_t> shape, void** data);

}  // namespace fastpower
