// The Python face of the native core: the only file that knows Python, and it computes nothing.
//
// A call goes through four steps. Choices come as the numbers of `codes`. Input is a NumPy array,
// of which the buffer is read, or a tensor's address, shape and strides; output is a NumPy array,
// whose size is checked, since kernels write without looking. The GIL is released. The batch is cut
// into slices, and where there is enough work several threads take them, each with its own working
// memory. A map is always computed alone, so that slices and threads leave no trace in its numbers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.hpp"
#include "threads.hpp"

namespace py = pybind11;
using namespace fastground;

namespace {

constexpr int max_grid = 256;
constexpr std::size_t max_taps = 65535;  // so that places in an extended map fit an int

template <class... Choices>
std::map<std::string, int> numbered(std::pair<const char*, Choices>... choices) {
  return {{choices.first, static_cast<int>(choices.second)}...};
}

std::map<std::string, std::map<std::string, int>> codes() {
  using std::pair;
  return {
      {"dtype", numbered(pair("bool", Dtype::boolean), pair("float16", Dtype::float16),
                         pair("bfloat16", Dtype::bfloat16), pair("float32", Dtype::float32),
                         pair("float64", Dtype::float64))},
      {"weight", numbered(pair("area", Weight::area), pair("mass", Weight::mass))},
      {"cut", numbered(pair("mean", Cut::mean), pair("mean+eps", Cut::mean_eps),
                       pair("2mean+eps", Cut::two_mean_eps))},
      {"empty", numbered(pair("inf", Empty::inf), pair("zero", Empty::zero))},
      {"border",
       numbered(pair("reflect101", Border::reflect101), pair("reflect", Border::reflect))},
      {"region", numbered(pair("hull", Keep::hull), pair("component", Keep::component),
                          pair("mass", Keep::mass), pair("all", Keep::all))},
  };
}

std::int64_t bytes_of(Dtype dtype) {
  if (dtype == Dtype::boolean) return 1;
  if (dtype == Dtype::float16 || dtype == Dtype::bfloat16) return 2;
  return dtype == Dtype::float32 ? 4 : 8;
}

// The memory of a NumPy array, held for the length of a call.
class Buffer {
 public:
  Buffer(py::handle array, int flags) {
    if (PyObject_GetBuffer(array.ptr(), &buffer_, flags) != 0) throw py::error_already_set();
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { PyBuffer_Release(&buffer_); }

  const Py_buffer* operator->() const { return &buffer_; }

 private:
  Py_buffer buffer_;
};

// A C-contiguous array to be written, of so many elements; None is not wanted.
template <class T>
class Output {
 public:
  Output(py::handle array, std::int64_t elements) {
    if (array.is_none()) return;
    buffer_.emplace(array, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS);
    if ((*buffer_)->len != elements * static_cast<std::int64_t>(sizeof(T))) {
      throw std::invalid_argument("an output has not the size of the result");
    }
  }

  T* at(std::int64_t element) const {
    return buffer_ ? static_cast<T*>((*buffer_)->buf) + element : nullptr;
  }

 private:
  std::optional<Buffer> buffer_;
};

// One map or a batch, (grid_h, grid_w) or (count, grid_h, grid_w): a NumPy array, or the tuple
// (owner, address, dtype, shape, strides) of a tensor.
class Input {
 public:
  explicit Input(py::handle source) {
    if (PyTuple_Check(source.ptr())) {
      const auto tensor = py::reinterpret_borrow<py::tuple>(source);
      const py::tuple shape = tensor[3];
      const py::tuple strides = tensor[4];
      const auto number = [](const py::tuple& numbers, std::size_t i) {
        return numbers[i].cast<std::int64_t>();
      };
      maps_.data = reinterpret_cast<const void*>(tensor[1].cast<std::uintptr_t>());
      maps_.dtype = static_cast<Dtype>(tensor[2].cast<int>());
      take_axes(
          shape.size(), [&](std::size_t i) { return number(shape, i); },
          [&](std::size_t i) { return number(strides, i); });
    } else {
      buffer_.emplace(source, PyBUF_STRIDES | PyBUF_FORMAT);
      const Buffer& array = *buffer_;
      maps_.data = array->buf;
      maps_.dtype = dtype_of(array->format);
      take_axes(
          array->ndim, [&](std::size_t i) { return array->shape[i]; },
          [&](std::size_t i) { return array->strides[i] / array->itemsize; });
    }
  }

  const MapView& maps() const { return maps_; }

 private:
  static Dtype dtype_of(const std::string& format) {
    if (format == "?") return Dtype::boolean;
    if (format == "e") return Dtype::float16;
    if (format == "f") return Dtype::float32;
    if (format == "d") return Dtype::float64;
    throw std::invalid_argument("no maps of format " + format);
  }

  template <class Shape, class Strides>
  void take_axes(std::size_t ndim, Shape&& shape, Strides&& strides) {
    if (ndim < 2 || ndim > 3) throw std::invalid_argument("maps must have two or three axes");
    maps_.count = ndim == 3 ? shape(0) : 1;
    maps_.stride_map = ndim == 3 ? strides(0) : 0;
    const std::int64_t grid_h = shape(ndim - 2);
    const std::int64_t grid_w = shape(ndim - 1);
    if (grid_h < 1 || grid_h > max_grid || grid_w < 1 || grid_w > max_grid) {
      throw std::invalid_argument("maps must have a grid of 1 to 256 cells a side");
    }
    maps_.grid_h = static_cast<int>(grid_h);
    maps_.grid_w = static_cast<int>(grid_w);
    maps_.stride_row = strides(ndim - 2);
    maps_.stride_column = strides(ndim - 1);
    if (maps_.data == nullptr && maps_.count > 0) throw std::invalid_argument("maps hold no data");
  }

  std::optional<Buffer> buffer_;
  MapView maps_{};
};

class Filter {
 public:
  Filter(py::handle weights, int border)
      : buffer_(weights, PyBUF_C_CONTIGUOUS), border_(static_cast<Border>(border)) {
    if (count() % 2 == 0 || count() > max_taps) {
      throw std::invalid_argument("kernel_size must be odd and at most 65535");
    }
  }

  Taps taps() const {
    return {static_cast<const double*>(buffer_->buf), static_cast<int>(count()), border_};
  }

 private:
  std::size_t count() const { return buffer_->len / sizeof(double); }

  Buffer buffer_;
  Border border_;
};

// While it lives, other Python threads run. A daemon thread that comes back when the interpreter
// has gone is ended by Python in the midst of C++, which cannot be; it sleeps instead until the
// process ends.
class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()) {}
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;
  ~WithoutGil() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      while (true) pause();
    }
  }

 private:
  PyThreadState* state_;
};

// How the work is cut.

const Kernels* kernels = &best_kernels();

// Working memory of the calling thread; grows and stays.
void* scratch(std::size_t bytes) {
  thread_local std::vector<std::byte> memory;
  if (memory.size() < bytes + 64) memory = std::vector<std::byte>(bytes + 64);
  const auto address = reinterpret_cast<std::uintptr_t>(memory.data());
  return reinterpret_cast<void*>((address + 63) / 64 * 64);
}

// The maps [begin, end).
MapView part(const MapView& maps, std::int64_t begin, std::int64_t end) {
  MapView some = maps;
  some.data =
      static_cast<const std::byte*>(maps.data) + begin * maps.stride_map * bytes_of(maps.dtype);
  some.count = end - begin;
  return some;
}

std::int64_t groups_of(const MapView& maps, int heads) {
  if (heads < 1 || maps.count % heads != 0) {
    throw std::invalid_argument("count must be a multiple of heads");
  }
  return maps.count / heads;
}

// How many groups of maps a thread takes at once: all where that takes less than a millisecond,
// else a quarter of one, in the blocks of 256 that the kernels like.
std::int64_t grain(std::int64_t groups, double ns_a_group) {
  if (static_cast<double>(groups) * ns_a_group < 1e6) return groups;
  const auto some = static_cast<std::int64_t>(0.25e6 / ns_a_group);
  return some < 1 ? 1 : some < 256 ? some : some / 256 * 256;
}

// Calls f(begin, end, memory) for the groups of `heads` maps, `taps` being those of its filter and
// ns_a_cell about what it costs; returns the sum of what f returns.
template <class F>
std::int64_t for_groups(const MapView& maps, int heads, int taps, double ns_a_cell, F&& f) {
  const std::int64_t groups = groups_of(maps, heads);
  const double ns_a_group = ns_a_cell * heads * maps.grid_h * maps.grid_w;
  const std::size_t bytes = kernels->scratch_bytes(maps.grid_h, maps.grid_w, taps);
  std::atomic<std::int64_t> sum = 0;
  const WithoutGil without;
  parallel_for(groups, grain(groups, ns_a_group),
               [&](std::int64_t begin, std::int64_t end) { sum += f(begin, end, scratch(bytes)); });
  return sum;
}

// The operations.

std::int64_t run_head_stats(py::handle source, int weight, int cut, int empty, py::handle sums,
                            py::handle entropies) {
  const Input input(source);
  const MapView& maps = input.maps();
  const Output<float> to_sums(sums, maps.count);
  const Output<float> to_entropies(entropies, maps.count);
  const auto head_stats = kernels->head_stats;
  return for_groups(maps, 1, 1, 0.25, [&](std::int64_t begin, std::int64_t end, void* memory) {
    return head_stats(part(maps, begin, end), static_cast<Weight>(weight), static_cast<Cut>(cut),
                      static_cast<Empty>(empty), memory, to_sums.at(begin), to_entropies.at(begin));
  });
}

std::int64_t run_binarize(py::handle source, int cut, py::handle mask) {
  const Input input(source);
  const MapView& maps = input.maps();
  const std::int64_t cells = maps.grid_h * maps.grid_w;
  const Output<bool> to_mask(mask, maps.count * cells);
  const auto binarize = kernels->binarize;
  return for_groups(maps, 1, 1, 0.25, [&](std::int64_t begin, std::int64_t end, void* memory) {
    return binarize(part(maps, begin, end), static_cast<Cut>(cut), memory,
                    to_mask.at(begin * cells));
  });
}

std::int64_t run_label(py::handle source, int cut, py::handle labels) {
  const Input input(source);
  const MapView& maps = input.maps();
  const std::int64_t cells = maps.grid_h * maps.grid_w;
  const Output<std::int32_t> to_labels(labels, maps.count * cells);
  const auto label = kernels->label;
  return for_groups(maps, 1, 1, 1.0, [&](std::int64_t begin, std::int64_t end, void* memory) {
    return label(part(maps, begin, end), static_cast<Cut>(cut), memory,
                 to_labels.at(begin * cells));
  });
}

std::int64_t run_combine(py::handle source, int heads, py::handle weights, int border,
                         py::handle combined) {
  const Input input(source);
  const MapView& maps = input.maps();
  const Filter filter(weights, border);
  const Taps taps = filter.taps();
  const std::int64_t cells = maps.grid_h * maps.grid_w;
  const Output<float> to_combined(combined, groups_of(maps, heads) * cells);
  const auto combine = kernels->combine;
  const double cost = 0.3 + 0.1 * taps.count;
  return for_groups(maps, heads, taps.count, cost,
                    [&](std::int64_t begin, std::int64_t end, void* memory) {
                      return combine(part(maps, begin * heads, end * heads), heads, taps, memory,
                                     to_combined.at(begin * cells));
                    });
}

// One valid for each group, one for all of them, or None: all cells are.
MapView valid_view(const std::optional<Input>& source, const MapView& maps, std::int64_t groups) {
  static const bool always = true;
  if (!source) return {&always, Dtype::boolean, groups, maps.grid_h, maps.grid_w, 0, 0, 0};
  MapView valid = source->maps();
  if (valid.count == 1) {
    valid.count = groups;
    valid.stride_map = 0;
  }
  if (valid.dtype != Dtype::boolean || valid.count != groups || valid.grid_h != maps.grid_h ||
      valid.grid_w != maps.grid_w) {
    throw std::invalid_argument("valid must be boolean, one for each combined map, of its grid");
  }
  return valid;
}

std::int64_t run_boxes(py::handle source, int heads, py::handle weights, int border,
                       py::handle valid_source, int region, py::handle xyxy, py::handle area,
                       py::handle mass, py::handle score, py::handle found) {
  const Input input(source);
  const MapView& maps = input.maps();
  const Filter filter(weights, border);
  const Taps taps = filter.taps();
  const std::int64_t groups = groups_of(maps, heads);
  std::optional<Input> valid_input;
  if (!valid_source.is_none()) valid_input.emplace(valid_source);
  const MapView valid = valid_view(valid_input, maps, groups);
  const Output<float> to_xyxy(xyxy, 4 * groups);
  const Output<float> to_area(area, groups);
  const Output<float> to_mass(mass, groups);
  const Output<float> to_score(score, groups);
  const Output<bool> to_found(found, groups);
  const auto boxes = kernels->boxes;
  const double cost = 2.0 + 0.1 * taps.count;
  return for_groups(maps, heads, taps.count, cost,
                    [&](std::int64_t begin, std::int64_t end, void* memory) {
                      return boxes(part(maps, begin * heads, end * heads), heads, taps,
                                   part(valid, begin, end), static_cast<Keep>(region), memory,
                                   {to_xyxy.at(4 * begin), to_area.at(begin), to_mass.at(begin),
                                    to_score.at(begin), to_found.at(begin)});
                    });
}

// What is here.

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const char* name : {"avx512", "avx2", "portable"}) {
    if (kernels_named(name) != nullptr) names.push_back(name);
  }
  return names;
}

void use(const std::string& name) {
  const Kernels* found = name.empty() ? &best_kernels() : kernels_named(name.c_str());
  if (found == nullptr) throw std::invalid_argument("no kernels for " + name + " here");
  kernels = found;
}

// os.environ writes through to here, and takes ten times as long to read.
const char* forced() {
  const char* value = std::getenv("FASTGROUND_IMPLEMENTATION");
  return value == nullptr ? "" : value;
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

  module.attr("codes") = codes();
  module.def("head_stats", &run_head_stats, py::arg("maps"), py::arg("weight"), py::arg("cut"),
             py::arg("empty"), py::arg("sums"), py::arg("entropies"),
             "Attention sums and spatial entropies as float32; None is not wanted.");
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
  module.def("set_num_threads", &set_num_threads, py::arg("count"));
  module.def("num_threads", &num_threads);
  module.def("use", &use, py::arg("name"), "Takes these kernels; the best if empty.");
  module.def("instruction_sets", &instruction_sets, "Which kernels run here, the best first.");
  module.def("forced", &forced, "FASTGROUND_IMPLEMENTATION, empty unless set.");
  module.def("build_info", &build_info, "What this extension was built from and with.");
}
