#include "bindings_tensors.h"

#include <algorithm>
#include <initializer_list>

namespace fastpower {
namespace {

constexpr int32_t kCpu = 1;
constexpr int kMaxDims = 4;

const DlpackExchange* g_exchange = nullptr;
PyTypeObject* g_type = nullptr;

template <class T>
constexpr DlpackType type_of();
template <>
constexpr DlpackType type_of<int32_t>() {
  return {0, 32, 1};
}
template <>
constexpr DlpackType type_of<int64_t>() {
  return {0, 64, 1};
}
template <>
constexpr DlpackType type_of<float>() {
  return {2, 32, 1};
}
template <>
constexpr DlpackType type_of<float16>() {
  return {2, 16, 1};
}
template <>
constexpr DlpackType type_of<bfloat16>() {
  return {4, 16, 1};
}

bool same(DlpackType a, DlpackType b) { return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes; }

void set_error(void*, const char*, const char* message) { PyErr_SetString(PyExc_RuntimeError, message); }

PyObject* allocate(DlpackType dtype, std::initializer_list<int64_t> shape, void** data) {
  int64_t sizes[kMaxDims];
  std::copy(shape.begin(), shape.end(), sizes);
  DlpackTensor prototype{nullptr, {kCpu, 0}, static_cast<int32_t>(shape.size()), dtype, sizes, nullptr, 0};
  DlpackManaged* managed = nullptr;
  if (g_exchange->allocate(&prototype, &managed, nullptr, set_error) != 0) return nullptr;
  *data = static_cast<char*>(managed->tensor.data) + managed->tensor.byte_offset;
  void* object = nullptr;
  if (g_exchange->object_from_managed(managed, &object) != 0) return nullptr;
  return static_cast<PyObject*>(object);
}

}  // namespace

bool View::of(PyObject* object) {
  if (Py_TYPE(object) != g_type) return false;  // subclasses may be anything
  if (g_exchange->tensor_from_object(object, &tensor_) != 0) {
    PyErr_Clear();
    return false;
  }
  return tensor_.device.type == kCpu && (tensor_.ndim == 0 || (tensor_.shape && tensor_.strides));
}

template <class T>
bool View::holds() const {
  return same(tensor_.dtype, type_of<T>());
}
template bool View::holds<int32_t>() const;
template bool View::holds<int64_t>() const;
template bool View::holds<float>() const;
template bool View::holds<float16>() const;
template bool View::holds<bfloat16>() const;

bool View::same_dtype(const View& other) const { return same(tensor_.dtype, other.tensor_.dtype); }

Dtype View::dtype() const {
  return holds<float>() ? Dtype::float32 : holds<bfloat16>() ? Dtype::bfloat16 : Dtype::float16;
}

bool use_tensors_of(PyObject* type) {
  PyObject* capsule = PyObject_GetAttrString(type, "__dlpack_c_exchange_api__");
  const auto* exchange =
      capsule ? static_cast<const DlpackExchange*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"))
              : nullptr;
  Py_XDECREF(capsule);  // what it points to lives as long as the process
  while (exchange && exchange->version.major > 1) exchange = exchange->previous;
  if (!exchange || exchange->version.major != 1 || !exchange->allocate || !exchange->object_from_managed ||
      !exchange->tensor_from_object || !PyType_Check(type)) {
    PyErr_Clear();
    return false;
  }
  Py_INCREF(type);
  g_exchange = exchange;
  g_type = reinterpret_cast<PyTypeObject*>(type);
  return true;
}

template <class T>
PyObject* empty(std::initializer_list<int64_t> shape, T** data) {
  void* address = nullptr;
  PyObject* tensor = allocate(type_of<T>(), shape, &address);
  *data = static_cast<T*>(address);
  return tensor;
}
template PyObject* empty(std::initializer_list<int64_t>, int32_t**);
template PyObject* empty(std::initializer_list<int64_t>, int64_t**);
template PyObject* empty(std::initializer_list<int64_t>, float**);

PyObject* empty_of(Dtype dtype, std::initializer_list<int64_t> shape, void** data) {
  const DlpackType type = dtype == Dtype::float32    ? type_of<float>()
                          : dtype == Dtype::bfloat16 ? type_of<bfloat16>()
                                                     : type_of<float16>();
  return allocate(type, shape, data);
}

}  // namespace fastpower
