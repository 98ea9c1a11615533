// The Python face of the native core: the only file that knows pybind11, and it computes nothing.
// It names choices, checks what could make the kernels leave their memory, makes their working
// memory and releases the GIL. Arrays come as addresses; fastground.ops checks and owns them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstddef>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.hpp"

namespace py = pybind11;
using namespace fastground;

namespace {

using Address = std::uintptr_t;

constexpr int max_grid = 256;
constexpr std::size_t max_taps = 65535;  // so that places in an extended map fit an int

template <class T>
T choice(const char* name, const std::string& value, const std::map<std::string, T>& choices) {
  const auto found = choices.find(value);
  if (found == choices.end()) throw std::invalid_argument(std::string(name) + ": " + value);
  return found->second;
}

const std::map<std::string, Dtype> dtypes = {{"bool", Dtype::boolean},
                                             {"float16", Dtype::float16},
                                             {"bfloat16", Dtype::bfloat16},
                                             {"float32", Dtype::float32},
                                             {"float64", Dtype::float64}};
const std::map<std::string, Cut> cuts = {
    {"mean", Cut::mean}, {"mean+eps", Cut::mean_eps}, {"2mean+eps", Cut::two_mean_eps}};
const std::map<std::string, Weight> weights = {{"area", Weight::area}, {"mass", Weight::mass}};
const std::map<std::string, Empty> empties = {{"inf", Empty::inf}, {"zero", Empty::zero}};
const std::map<std::string, Border> borders = {{"reflect101", Border::reflect101},
                                               {"reflect", Border::reflect}};
const std::map<std::string, Keep> keeps = {
    {"hull", Keep::hull}, {"component", Keep::component}, {"mass", Keep::mass}, {"all", Keep::all}};

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

MapView make_view(const py::object&, Address data, const std::string& dtype, std::int64_t count,
                  int grid_h, int grid_w, std::int64_t stride_map, std::int64_t stride_row,
                  std::int64_t stride_column) {
  if (count < 0 || grid_h < 1 || grid_h > max_grid || grid_w < 1 || grid_w > max_grid) {
    throw std::invalid_argument("a view must have count >= 0 and a grid of 1 to 256 cells a side");
  }
  return {pointer<const void>(data),
          choice("dtype", dtype, dtypes),
          count,
          grid_h,
          grid_w,
          stride_map,
          stride_row,
          stride_column};
}

const Kernels* kernels = &best_kernels();

// Working memory of the calling thread; grows and stays.
void* scratch_for(const MapView& maps, int taps = 1) {
  thread_local std::vector<std::byte> memory;
  memory.resize(
      std::max(memory.size(), kernels->scratch_bytes(maps.grid_h, maps.grid_w, taps) + 64));
  const auto address = reinterpret_cast<Address>(memory.data());
  return pointer<void>((address + 63) / 64 * 64);
}

std::int64_t run_head_stats(const MapView& maps, const std::string& weight, const std::string& cut,
                            const std::string& empty, Address sums, Address entropies) {
  const auto w = choice("weight", weight, weights);
  const auto c = choice("cut", cut, cuts);
  const auto e = choice("empty", empty, empties);
  const py::gil_scoped_release release;
  return kernels->head_stats(maps, w, c, e, scratch_for(maps), pointer<float>(sums),
                             pointer<float>(entropies));
}

std::int64_t run_binarize(const MapView& maps, const std::string& cut, Address mask) {
  const auto c = choice("cut", cut, cuts);
  const py::gil_scoped_release release;
  return kernels->binarize(maps, c, scratch_for(maps), pointer<bool>(mask));
}

std::int64_t run_label(const MapView& maps, const std::string& cut, Address labels) {
  const auto c = choice("cut", cut, cuts);
  const py::gil_scoped_release release;
  return kernels->label(maps, c, scratch_for(maps), pointer<std::int32_t>(labels));
}

void check(const MapView& maps, int heads, const std::vector<double>& taps) {
  if (heads < 1 || maps.count % heads != 0) {
    throw std::invalid_argument("count must be a multiple of heads");
  }
  if (taps.size() % 2 == 0 || taps.size() > max_taps) {
    throw std::invalid_argument("kernel_size must be odd and at most 65535");
  }
}

std::int64_t run_combine(const MapView& maps, int heads, const std::vector<double>& weights,
                         const std::string& border, Address combined) {
  check(maps, heads, weights);
  const Taps taps{weights.data(), static_cast<int>(weights.size()),
                  choice("border", border, borders)};
  const py::gil_scoped_release release;
  return kernels->combine(maps, heads, taps, scratch_for(maps, taps.count),
                          pointer<float>(combined));
}

std::int64_t run_boxes(const MapView& maps, int heads, const std::vector<double>& weights,
                       const std::string& border, const MapView& valid, const std::string& keep,
                       Address xyxy, Address area, Address mass, Address score, Address found) {
  check(maps, heads, weights);
  if (valid.dtype != Dtype::boolean || valid.count * heads != maps.count ||
      valid.grid_h != maps.grid_h || valid.grid_w != maps.grid_w) {
    throw std::invalid_argument("valid must be boolean, one for each combined map, of its grid");
  }
  const Taps taps{weights.data(), static_cast<int>(weights.size()),
                  choice("border", border, borders)};
  const auto k = choice("region", keep, keeps);
  const py::gil_scoped_release release;
  return kernels->boxes(maps, heads, taps, valid, k, scratch_for(maps, taps.count),
                        {pointer<float>(xyxy), pointer<float>(area), pointer<float>(mass),
                         pointer<float>(score), pointer<bool>(found)});
}

void use(const std::string& name) {
  const Kernels* found = name.empty() ? &best_kernels() : kernels_named(name.c_str());
  if (found == nullptr) throw std::invalid_argument("no kernels for " + name + " here");
  kernels = found;
}

py::dict build_info() {
  py::dict info;
  info["version"] = FASTGROUND_VERSION;
  info["compiler"] = FASTGROUND_COMPILER;
  info["build_type"] = FASTGROUND_BUILD_TYPE;
  info["cuda"] = FASTGROUND_CUDA;
  info["kernels"] = kernels->name;
  return info;
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  module.doc() = "Operations on batches of attention maps, in C++.";

  py::class_<MapView>(module, "MapView", "A batch of maps in memory that `owner` keeps alive.")
      .def(py::init(&make_view), py::arg("owner"), py::arg("data"), py::arg("dtype"),
           py::arg("count"), py::arg("grid_h"), py::arg("grid_w"), py::arg("stride_map"),
           py::arg("stride_row"), py::arg("stride_column"), py::keep_alive<1, 2>());
  module.def("head_stats", &run_head_stats, py::arg("maps"), py::arg("weight"), py::arg("cut"),
             py::arg("empty"), py::arg("sums"), py::arg("entropies"),
             "Attention sums and spatial entropies as float32; an address of 0 is not wanted.");
  module.def("binarize", &run_binarize, py::arg("maps"), py::arg("cut"), py::arg("mask"),
             "Where maps exceed their cut, as bool.");
  module.def("label", &run_label, py::arg("maps"), py::arg("cut"), py::arg("labels"),
             "Numbered 8-connected regions as int32.");
  module.def("combine", &run_combine, py::arg("maps"), py::arg("heads"), py::arg("taps"),
             py::arg("border"), py::arg("combined"),
             "Each `heads` successive maps smoothed and summed, as float32.");
  module.def("boxes", &run_boxes, py::arg("maps"), py::arg("heads"), py::arg("taps"),
             py::arg("border"), py::arg("valid"), py::arg("region"), py::arg("xyxy"),
             py::arg("area"), py::arg("mass"), py::arg("score"), py::arg("found"),
             "The kept region's box and support as float32, found as bool.");
  module.def("use", &use, py::arg("name"), "Takes these kernels; the best if empty.");
  module.def("build_info", &build_info, "What this extension was built from and with.");
}
