// What a DLPack capsule describes: the door for arrays of any library, torch not among them.
#include <string>

#include "bindings/module.h"
#include "bindings/tensors.h"

namespace py = pybind11;

namespace fastpower {
namespace {

struct Described {
  const DlpackTensor* tensor;
  bool read_only;
};

Described described(PyObject* capsule) {
  constexpr uint64_t kReadOnly = 1;  // bit of the flags of version 1
  if (PyCapsule_IsValid(capsule, "dltensor_versioned")) {
    const auto* managed =
        static_cast<const DlpackManaged*>(PyCapsule_GetPointer(capsule, "dltensor_versioned"));
    if (managed->version.major != 1)
      throw py::value_error("DLPack version " + std::to_string(managed->version.major) + " is not known");
    return {&managed->tensor, (managed->flags & kReadOnly) != 0};
  }
  if (PyCapsule_IsValid(capsule, "dltensor"))  // before version 1 the tensor stood first
    return {static_cast<const DlpackTensor*>(PyCapsule_GetPointer(capsule, "dltensor")), false};
  throw py::type_error("a DLPack capsule was to be read, and one that nobody has taken yet");
}

// (address, type code, bits, lanes, device type, shape, strides in entries, read-only). The capsule stays as
// it is: what it describes lives as long as it does.
py::tuple dlpack_view(const py::capsule& capsule) {
  const auto [t, read_only] = described(capsule.ptr());
  py::tuple shape(t->ndim), strides(t->ndim);
  int64_t dense = 1;
  for (int i = t->ndim - 1; i >= 0; --i) {
    shape[static_cast<size_t>(i)] = t->shape[i];
    strides[static_cast<size_t>(i)] = t->strides ? t->strides[i] : dense;
    dense *= t->shape[i];
  }
  const auto address = reinterpret_cast<uintptr_t>(t->data);
  return py::make_tuple(address ? address + t->byte_offset : 0, int{t->dtype.code}, int{t->dtype.bits},
                        int{t->dtype.lanes}, t->device.type, shape, strides, read_only);
}

}  // namespace

void bind_arrays(py::module_& m) { m.def("dlpack_view", &dlpack_view, py::arg("capsule")); }

}  // namespace fastpower
