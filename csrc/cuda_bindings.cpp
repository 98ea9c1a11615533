// The Python face of the CUDA kernels, `fastground._cuda`: like bindings.cpp it computes nothing.
//
// Tensors come as they are, and what is asked of them costs a fraction of a microsecond; Torch's
// headers are not asked for. A call runs on the device of the maps, on that device's current
// stream. What it writes are tensors of the result's size, on the same device; None is not wanted.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

#include "choices.hpp"
#include "cuda_kernels.hpp"
#include "fixed_point.hpp"
#include "tensors.hpp"

namespace py = pybind11;
using namespace fastground;

namespace {

constexpr int known_n_ln_n = max_grid * max_grid + 1;

// A batch (..., grid_h, grid_w) as kernels read it; none unless the cells of a map lie one after
// another, and all of its maps at one distance.
std::optional<MapView> readable(const dlpack::Tensor& tensor) {
  const int grid = tensor.ndim - 2;
  if (grid < 0 || tensor.shape[grid] < 1 || tensor.shape[grid] > max_grid ||
      tensor.shape[grid + 1] < 1 || tensor.shape[grid + 1] > max_grid) {
    throw std::invalid_argument("maps must have a grid of 1 to 256 cells a side");
  }
  MapView maps{};
  maps.data = data_of(tensor);
  maps.dtype = known(dtype_of(tensor));
  maps.grid_h = static_cast<int>(tensor.shape[grid]);
  maps.grid_w = static_cast<int>(tensor.shape[grid + 1]);
  maps.stride_row = maps.grid_w;
  maps.stride_column = 1;
  maps.count = 1;
  for (int axis = 0; axis < grid; ++axis) maps.count *= tensor.shape[axis];
  if (maps.count == 0) return maps;
  if ((maps.grid_w > 1 && tensor.strides[grid + 1] != 1) ||
      (maps.grid_h > 1 && tensor.strides[grid] != maps.grid_w)) {
    return {};
  }
  std::int64_t within = 1;  // maps of the axes that are walked already, the last first
  for (int axis = grid; axis-- > 0; within *= tensor.shape[axis]) {
    if (tensor.shape[axis] == 1) continue;
    if (within == 1) maps.stride_map = tensor.strides[axis];
    if (tensor.strides[axis] != within * maps.stride_map) return {};
  }
  return maps;
}

// The tensors of one call, all on the device of the first.
class Call {
 public:
  explicit Call(py::handle maps) : first_(look_at(maps)) {
    const auto found = readable(first_);
    if (!found) throw std::invalid_argument("maps must lie as `batch_of` says");
    maps_ = *found;
  }

  const MapView& maps() const { return maps_; }

  const MapView& numbers() const {
    if (maps_.dtype == Dtype::boolean) throw std::invalid_argument("maps must not be bool here");
    return maps_;
  }

  // How many combined maps there are of so many heads.
  std::int64_t groups(int heads) const {
    if (heads < 1 || numbers().count % heads != 0) {
      throw std::invalid_argument("count must be a multiple of heads");
    }
    return maps_.count / heads;
  }

  // Boolean maps, one for each group or one for all of them, or None: no data.
  MapView valid(py::handle given, std::int64_t groups) const {
    if (given.is_none()) return {};
    const dlpack::Tensor tensor = beside(given);
    auto valid = readable(tensor);
    if (valid && valid->count == 1) {
      valid->count = groups;
      valid->stride_map = 0;
    }
    if (!valid || valid->dtype != Dtype::boolean || valid->count != groups ||
        valid->grid_h != maps_.grid_h || valid->grid_w != maps_.grid_w) {
      throw std::invalid_argument("valid must be boolean, one for each combined map, of its grid");
    }
    return *valid;
  }

  // Where so many elements lie, or are to be written.
  template <class T>
  T* array(py::handle given, std::int64_t elements) const {
    const dlpack::Tensor tensor = beside(given);
    std::int64_t held = 1;
    bool contiguous = tensor.dtype.bits == 8 * sizeof(T);
    for (int axis = tensor.ndim; axis-- > 0; held *= tensor.shape[axis]) {
      contiguous &= tensor.shape[axis] == 1 || tensor.strides[axis] == held;
    }
    if (held != elements || (held > 0 && !contiguous)) {
      throw std::invalid_argument("an array has not the size of what it is to hold");
    }
    return static_cast<T*>(data_of(tensor));
  }
  template <class T>
  T* if_wanted(py::handle given, std::int64_t elements) const {
    return given.is_none() ? nullptr : array<T>(given, elements);
  }

  // Where, with a workspace or None.
  CudaCall where(py::handle workspace, const std::uint64_t* n_ln_n = nullptr) const {
    void* stream = nullptr;
    if (exchange->stream(first_.device.type, first_.device.id, &stream) != 0) {
      throw py::error_already_set();
    }
    void* room = workspace.is_none() ? nullptr : data_of(beside(workspace));
    return {first_.device.id, stream, room, n_ln_n};
  }

 private:
  dlpack::Tensor beside(py::handle given) const {
    const dlpack::Tensor tensor = look_at(given);
    if (tensor.device.type != first_.device.type || tensor.device.id != first_.device.id) {
      throw std::invalid_argument("all tensors must be on the device of the maps");
    }
    return tensor;
  }

  dlpack::Tensor first_;
  MapView maps_;
};

// A filter's weights on the host.
Taps taps_of(const py::array_t<double, py::array::c_style>& weights, int border) {
  if (weights.size() % 2 == 0 || weights.size() > max_taps) {
    throw std::invalid_argument("kernel_size must be odd and at most 65535");
  }
  return {weights.data(), static_cast<int>(weights.size()), chosen(border, Border::reflect)};
}

void check(const char* error) {
  if (error != nullptr) throw std::runtime_error(std::string("CUDA: ") + error);
}

// The shape of the batch, a tuple; None unless maps can be read where they are.
py::object batch_of(py::handle maps) {
  const dlpack::Tensor tensor = look_at(maps);
  if (!readable(tensor)) return py::none();
  py::tuple batch(tensor.ndim - 2);
  for (int axis = 0; axis < tensor.ndim - 2; ++axis) {
    PyTuple_SET_ITEM(batch.ptr(), axis, PyLong_FromLongLong(tensor.shape[axis]));
  }
  return batch;
}

void run_head_stats(py::handle maps, int weight, int cut, int empty, py::handle n_ln_n,
                    py::handle workspace, py::handle sums, py::handle entropies) {
  const Call call(maps);
  const std::int64_t count = call.numbers().count;
  const auto* table =
      entropies.is_none() ? nullptr : call.array<std::uint64_t>(n_ln_n, known_n_ln_n);
  check(cuda_head_stats(call.maps(), chosen(weight, Weight::mass), chosen_cut(cut),
                        chosen(empty, Empty::zero), call.where(workspace, table),
                        call.if_wanted<float>(sums, count),
                        call.if_wanted<float>(entropies, count)));
}

void run_binarize(py::handle maps, int cut, py::handle mask) {
  const Call call(maps);
  const MapView& of = call.numbers();
  check(cuda_binarize(of, chosen_cut(cut), call.where(py::none()),
                      call.array<bool>(mask, of.count * of.grid_h * of.grid_w)));
}

void run_label(py::handle maps, int cut, py::handle workspace, py::handle labels) {
  const Call call(maps);
  const MapView& of = call.maps();
  check(cuda_label(of, chosen_cut(cut), call.where(workspace),
                   call.array<std::int32_t>(labels, of.count * of.grid_h * of.grid_w)));
}

void run_combine(py::handle maps, int heads, const py::array_t<double, py::array::c_style>& taps,
                 py::handle weights, int border, py::handle workspace, py::handle combined) {
  const Call call(maps);
  const MapView& of = call.maps();
  check(cuda_combine(of, heads, taps_of(taps, border), call.array<double>(weights, taps.size()),
                     call.where(workspace),
                     call.array<float>(combined, call.groups(heads) * of.grid_h * of.grid_w)));
}

void run_boxes(py::handle maps, int heads, const py::array_t<double, py::array::c_style>& taps,
               py::handle weights, int border, py::handle valid, int region, py::handle workspace,
               py::handle rows, py::handle found) {
  const Call call(maps);
  const std::int64_t groups = call.groups(heads);
  auto* to_rows = reinterpret_cast<Box*>(call.array<float>(rows, 7 * groups));
  check(cuda_boxes(call.maps(), heads, taps_of(taps, border),
                   call.array<double>(weights, taps.size()), call.valid(valid, groups),
                   chosen(region, Keep::all), call.where(workspace), to_rows,
                   call.array<bool>(found, groups)));
}

std::size_t workspace_bytes(const std::string& operation, py::handle maps, int heads) {
  const Call call(maps);
  const MapView& of = call.maps();
  const auto bytes = [&](Operation which) {
    return cuda_workspace_bytes(which, of.grid_h, of.grid_w, of.count / heads);
  };
  if (operation == "head_stats") return bytes(Operation::head_stats);
  if (operation == "label") return bytes(Operation::label);
  if (operation == "combine") return bytes(Operation::combine);
  if (operation == "boxes") return bytes(Operation::boxes);
  throw std::invalid_argument("no operation is called " + operation);
}

// Of every number of cells: the logarithm of a GPU may round elsewhere than that of the CPU.
py::array_t<std::int64_t> n_ln_n_of_all() {
  py::array_t<std::int64_t> table(known_n_ln_n);
  for (int n = 0; n < known_n_ln_n; ++n) table.mutable_at(n) = static_cast<std::int64_t>(n_ln_n(n));
  return table;
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
  module.doc() = "Operations on batches of attention maps that lie on a GPU.";

  module.def("use_tensors", &use_tensors, "Which class of tensors is read and written.");
  module.def("batch_of", &batch_of, "The batch's shape; None if maps must be copied to be read.");
  module.def("head_stats", &run_head_stats, "Attention sums and spatial entropies.");
  module.def("binarize", &run_binarize, "Where maps exceed their cut, as bool.");
  module.def("label", &run_label, "Numbered 8-connected regions as int32.");
  module.def("combine", &run_combine, "Each `heads` successive maps smoothed and summed.");
  module.def(
      "boxes", &run_boxes,
      "x1, y1, x2, y2, area, mass and score of each combined map; and whether one is found.");
  module.def("workspace_bytes", &workspace_bytes, "What a call needs on the device; often 0.");
  module.def("n_ln_n", &n_ln_n_of_all, "The table that a device must hold, as int64.");
}
