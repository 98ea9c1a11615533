// Tensors as Python gives them to either extension: what class they are of, and where their numbers
// lie.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>
#include <stdexcept>

#include "exchange.hpp"
#include "map_view.hpp"

namespace fastground {
namespace {

namespace py = pybind11;

// The class of the tensors that are read and made, and its functions for both.
inline PyObject* tensor_class = nullptr;
inline const dlpack::Exchange* exchange = nullptr;

inline void use_tensors(const py::type& given) {
  const py::object table = given.attr("__dlpack_c_exchange_api__");
  const void* found = PyCapsule_GetPointer(table.ptr(), "dlpack_exchange_api");
  if (found == nullptr) throw py::error_already_set();
  exchange = dlpack::of_this_version(static_cast<const dlpack::Exchange*>(found));
  if (exchange == nullptr || exchange->look == nullptr) {
    throw std::invalid_argument("tensors must be exchanged as DLPack 1 says");
  }
  tensor_class = given.inc_ref().ptr();  // for as long as the process lives
}

inline bool is_tensor(py::handle given) {
  return tensor_class != nullptr &&
         PyObject_TypeCheck(given.ptr(), reinterpret_cast<PyTypeObject*>(tensor_class)) != 0;
}

// What a tensor says, for as long as it lives.
inline dlpack::Tensor look_at(py::handle given) {
  if (!is_tensor(given)) throw py::type_error("arrays must be tensors");
  dlpack::Tensor tensor;
  if (exchange->look(given.ptr(), &tensor) != 0) throw py::error_already_set();
  return tensor;
}

inline void* data_of(const dlpack::Tensor& tensor) {
  return tensor.data == nullptr ? nullptr : static_cast<char*>(tensor.data) + tensor.byte_offset;
}

using MaybeDtype = std::optional<Dtype>;

inline MaybeDtype dtype_of(const dlpack::Tensor& tensor) {
  const auto is = [&](dlpack::TypeCode code, std::uint8_t bits) {
    return tensor.dtype == dlpack::DataType{code, bits, 1};
  };
  if (is(dlpack::boolean, 8)) return Dtype::boolean;
  if (is(dlpack::floating, 16)) return Dtype::float16;
  if (is(dlpack::bfloat, 16)) return Dtype::bfloat16;
  if (is(dlpack::floating, 32)) return Dtype::float32;
  if (is(dlpack::floating, 64)) return Dtype::float64;
  return {};
}

inline Dtype known(MaybeDtype dtype) {
  if (dtype) return *dtype;
  throw std::invalid_argument("maps must be float16, bfloat16, float32, float64 or bool");
}

}  // namespace
}  // namespace fastground
