// The Python face of the CUDA kernels, `fastground._cuda`: like bindings.cpp it computes nothing.
//
// Tensors come as plain numbers, for Torch's headers are not asked for: a batch as (address, dtype,
// count, grid_h, grid_w, stride from map to map), where it runs as (device, stream, workspace,
// table), a result as its address. What lies behind an address is the caller's word, gpu.py's.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "choices.hpp"
#include "cuda_kernels.hpp"
#include "fixed_point.hpp"

namespace py = pybind11;
using namespace fastground;

namespace {

template <class T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}
template <class T>
T* pointer(const py::handle& address) {
  return pointer<T>(address.cast<std::uintptr_t>());
}

MapView view_of(const py::tuple& batch) {
  MapView maps{};
  maps.data = pointer<const void>(batch[0]);
  maps.dtype = chosen(batch[1].cast<int>(), Dtype::float64);
  maps.count = batch[2].cast<std::int64_t>();
  maps.grid_h = batch[3].cast<int>();
  maps.grid_w = batch[4].cast<int>();
  maps.stride_map = batch[5].cast<std::int64_t>();
  maps.stride_row = maps.grid_w;
  maps.stride_column = 1;
  if (maps.count < 0 || maps.grid_h < 1 || maps.grid_h > max_grid || maps.grid_w < 1 ||
      maps.grid_w > max_grid) {
    throw std::invalid_argument("maps must have a grid of 1 to 256 cells a side");
  }
  return maps;
}

MapView numbers_of(const py::tuple& batch) {
  const MapView maps = view_of(batch);
  if (maps.dtype == Dtype::boolean) throw std::invalid_argument("maps must not be bool here");
  return maps;
}

CudaCall call_of(const py::tuple& where) {
  return {where[0].cast<int>(), pointer<void>(where[1]), pointer<void>(where[2]),
          pointer<const std::uint64_t>(where[3])};
}

Taps taps_of(const py::array_t<double, py::array::c_style>& weights, int border) {
  if (weights.size() % 2 == 0 || weights.size() > max_taps) {
    throw std::invalid_argument("kernel_size must be odd and at most 65535");
  }
  return {weights.data(), static_cast<int>(weights.size()), chosen(border, Border::reflect)};
}

void check_heads(const MapView& maps, int heads) {
  if (heads < 1 || maps.count % heads != 0) {
    throw std::invalid_argument("count must be a multiple of heads");
  }
}

void check(const char* error) {
  if (error != nullptr) throw std::runtime_error(std::string("CUDA: ") + error);
}

void run_head_stats(const py::tuple& batch, int weight, int cut, int empty, const py::tuple& where,
                    std::uintptr_t sums, std::uintptr_t entropies) {
  check(cuda_head_stats(numbers_of(batch), chosen(weight, Weight::mass), chosen_cut(cut),
                        chosen(empty, Empty::zero), call_of(where), pointer<float>(sums),
                        pointer<float>(entropies)));
}

void run_binarize(const py::tuple& batch, int cut, const py::tuple& where, std::uintptr_t mask) {
  check(cuda_binarize(numbers_of(batch), chosen_cut(cut), call_of(where), pointer<bool>(mask)));
}

void run_label(const py::tuple& batch, int cut, const py::tuple& where, std::uintptr_t labels) {
  check(cuda_label(view_of(batch), chosen_cut(cut), call_of(where), pointer<std::int32_t>(labels)));
}

void run_combine(const py::tuple& batch, int heads,
                 const py::array_t<double, py::array::c_style>& taps, std::uintptr_t weights,
                 int border, const py::tuple& where, std::uintptr_t combined) {
  const MapView maps = numbers_of(batch);
  check_heads(maps, heads);
  check(cuda_combine(maps, heads, taps_of(taps, border), pointer<const double>(weights),
                     call_of(where), pointer<float>(combined)));
}

void run_boxes(const py::tuple& batch, int heads,
               const py::array_t<double, py::array::c_style>& taps, std::uintptr_t weights,
               int border, const py::object& valid_batch, int region, const py::tuple& where,
               std::uintptr_t rows) {
  const MapView maps = numbers_of(batch);
  check_heads(maps, heads);
  MapView valid{};
  if (!valid_batch.is_none()) {
    valid = view_of(valid_batch);
    if (valid.dtype != Dtype::boolean || valid.count != maps.count / heads ||
        valid.grid_h != maps.grid_h || valid.grid_w != maps.grid_w) {
      throw std::invalid_argument("valid must be boolean, one for each combined map, of its grid");
    }
  }
  check(cuda_boxes(maps, heads, taps_of(taps, border), pointer<const double>(weights), valid,
                   chosen(region, Keep::all), call_of(where), pointer<Box>(rows)));
}

std::size_t workspace_bytes(const std::string& operation, int grid_h, int grid_w,
                            std::int64_t count) {
  const auto of = [&](Operation which) {
    return cuda_workspace_bytes(which, grid_h, grid_w, count);
  };
  if (operation == "head_stats") return of(Operation::head_stats);
  if (operation == "label") return of(Operation::label);
  if (operation == "combine") return of(Operation::combine);
  if (operation == "boxes") return of(Operation::boxes);
  throw std::invalid_argument("no operation is called " + operation);
}

// Of every number of cells: the logarithm of a GPU may round elsewhere than that of the CPU.
py::array_t<std::int64_t> n_ln_n_of_all() {
  constexpr int known = max_grid * max_grid + 1;
  py::array_t<std::int64_t> table(known);
  for (int n = 0; n < known; ++n) table.mutable_at(n) = static_cast<std::int64_t>(n_ln_n(n));
  return table;
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
  module.doc() = "Operations on batches of attention maps that lie on a GPU.";

  module.def("head_stats", &run_head_stats, "Attention sums and spatial entropies; 0: not wanted.");
  module.def("binarize", &run_binarize, "Where maps exceed their cut, as bool.");
  module.def("label", &run_label, "Numbered 8-connected regions as int32.");
  module.def("combine", &run_combine, "Each `heads` successive maps smoothed and summed.");
  module.def("boxes", &run_boxes, "x1, y1, x2, y2, area, mass and score of each combined map.");
  module.def("workspace_bytes", &workspace_bytes, "What a call needs on the device; often 0.");
  module.def("n_ln_n", &n_ln_n_of_all, "The table that a device must hold, as int64.");
}
