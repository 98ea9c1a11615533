// The Python face of the native core: with tensors.hpp all that knows Python, and it computes
// nothing.
//
// A call goes through three steps. What it is given is checked, since kernels read and write
// without looking: choices are the numbers of `codes`; input is a NumPy array or a tensor; output
// is a NumPy array of the result's size. Who calls holds all of them until the call returns. Then
// the GIL is released. Then slices.cpp computes.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <cstddef>
#include <cstdlib>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "attention_tensors.hpp"
#include "box_tensors.hpp"
#include "choices.hpp"
#include "kernels.hpp"
#include "slices.hpp"
#include "tensors.hpp"
#include "threads.hpp"

namespace py = pybind11;
using namespace fastground;

namespace {

constexpr std::int64_t few_cells = 4096;  // a few microseconds of work

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

// A NumPy array as it is: anything else is refused, not converted.
py::array taken(py::handle given) {
  if (!py::isinstance<py::array>(given)) throw py::type_error("arrays must be of NumPy");
  return py::reinterpret_borrow<py::array>(given);
}

// The letter of an array's dtype, 0 if its numbers have the other byte order.
char letter_of(const py::array& array) {
  const py::dtype dtype = array.dtype();
  const char order = dtype.byteorder();
  return order == '=' || order == '|' ? dtype.char_() : 0;
}

bool is_contiguous(const py::array& array) { return (array.flags() & py::array::c_style) != 0; }

// A C-contiguous array to be written, of so many elements; None is not wanted.
template <class T>
class Output {
 public:
  Output(py::handle given, std::int64_t elements) {
    if (given.is_none()) return;
    py::array array = taken(given);
    if (!array.writeable()) throw std::invalid_argument("an output is read-only");
    if (!is_contiguous(array)) throw std::invalid_argument("an output is not contiguous");
    if (array.itemsize() != sizeof(T) || array.size() != elements) {
      throw std::invalid_argument("an output has not the size of the result");
    }
    data_ = static_cast<T*>(array.mutable_data());
  }

  T* if_wanted() const { return data_; }
  T* data() const {
    if (data_ == nullptr) throw std::invalid_argument("an output is missing");
    return data_;
  }

 private:
  T* data_ = nullptr;
};

using fastground::dtype_of;  // of tensors

MaybeDtype dtype_of(const py::array& array) {
  switch (letter_of(array)) {
    case '?':
      return Dtype::boolean;
    case 'e':
      return Dtype::float16;
    case 'f':
      return Dtype::float32;
    case 'd':
      return Dtype::float64;
    default:
      return {};
  }
}

// The shape of floating maps of so many axes or more that can be read as they are; None of others,
// of which arguments.py says what is wrong or what is done with them. Of what stands in the way a
// tensor's negative bit alone cannot be seen here.
py::object plain_shape(py::handle maps, int least_axes) {
  const auto shape_of = [least_axes](MaybeDtype dtype, std::int64_t axes,
                                     const auto* sizes) -> py::object {
    if (!dtype || *dtype == Dtype::boolean || axes < least_axes) return py::none();
    for (std::int64_t i = axes - least_axes; i < axes; ++i) {
      if (sizes[i] < 1 || (i >= axes - 2 && sizes[i] > max_grid)) return py::none();
    }
    py::tuple shape(axes);
    for (std::int64_t i = 0; i < axes; ++i) {
      PyTuple_SET_ITEM(shape.ptr(), i, PyLong_FromLongLong(sizes[i]));
    }
    return shape;
  };
  if (is_tensor(maps)) {
    dlpack::Tensor tensor;
    if (exchange->look(maps.ptr(), &tensor) != 0) {
      PyErr_Clear();
      return py::none();
    }
    if (tensor.data == nullptr) return py::none();  // empty, or without numbers
    const auto device = tensor.device.type;
    if (device != dlpack::cpu && device != dlpack::cuda) return py::none();
    return shape_of(dtype_of(tensor), tensor.ndim, tensor.shape);
  }
  using py::detail::npy_api;
  if (Py_TYPE(maps.ptr()) != npy_api::get().PyArray_Type_) return py::none();  // a subclass, too
  const auto array = py::reinterpret_borrow<py::array>(maps);
  if ((array.flags() & npy_api::NPY_ARRAY_ALIGNED_) == 0) return py::none();
  return shape_of(dtype_of(array), array.ndim(), array.shape());
}

// One map or a batch, (grid_h, grid_w) or (count, grid_h, grid_w): a NumPy array or a tensor.
class Input {
 public:
  explicit Input(py::handle source) {
    if (is_tensor(source)) {
      const dlpack::Tensor tensor = look_at(source);
      if (tensor.device.type != dlpack::cpu && tensor.device.type != dlpack::pinned) {
        throw std::invalid_argument("maps must be on the CPU");
      }
      maps_.data = data_of(tensor);
      maps_.dtype = known(dtype_of(tensor));
      take_axes(
          tensor.ndim, [&](std::size_t i) { return tensor.shape[i]; },
          [&](std::size_t i) { return tensor.strides[i]; });
    } else {
      const py::array array = taken(source);
      maps_.data = array.data();
      maps_.dtype = known(dtype_of(array));
      take_axes(
          array.ndim(), [&](std::size_t i) { return array.shape()[i]; },
          [&](std::size_t i) { return elements(array.strides()[i], array.itemsize()); });
    }
  }

  const MapView& maps() const { return maps_; }

  const MapView& numbers() const {
    if (maps_.dtype == Dtype::boolean) throw std::invalid_argument("maps must not be bool here");
    return maps_;
  }

 private:
  static std::int64_t elements(std::int64_t bytes, std::int64_t itemsize) {
    if (bytes % itemsize == 0) return bytes / itemsize;
    throw std::invalid_argument("maps must have strides of whole elements");
  }

  template <class Shape, class Strides>
  void take_axes(std::size_t ndim, Shape&& shape, Strides&& strides) {
    if (ndim < 2 || ndim > 3) throw std::invalid_argument("maps must have two or three axes");
    maps_.count = ndim == 3 ? shape(0) : 1;
    if (maps_.count < 0) throw std::invalid_argument("maps cannot be fewer than none");
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

  MapView maps_{};
};

Taps taps_of(py::handle weights, int border) {
  const py::array array = taken(weights);
  if (letter_of(array) != 'd' || !is_contiguous(array)) {
    throw std::invalid_argument("taps must be float64 and contiguous");
  }
  if (array.size() % 2 == 0 || array.size() > max_taps) {
    throw std::invalid_argument("kernel_size must be odd and at most 65535");
  }
  return {static_cast<const double*>(array.data()), static_cast<int>(array.size()),
          chosen(border, Border::reflect)};
}

// While it lives, other Python threads run, unless the work is done before they could begin. A
// daemon thread that comes back when the interpreter has gone is ended by Python in the midst of
// C++, which cannot be; it sleeps instead until the process ends.
class WithoutGil {
 public:
  explicit WithoutGil(const MapView& maps) : WithoutGil(maps.count * maps.grid_h * maps.grid_w) {}
  explicit WithoutGil(std::int64_t cells)
      : state_(cells < few_cells ? nullptr : PyEval_SaveThread()) {}
  WithoutGil(WithoutGil&&) = delete;
  ~WithoutGil() {
    if (state_ == nullptr) return;
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      while (true) pause();
    }
  }

 private:
  PyThreadState* state_;
};

std::int64_t run_head_stats(py::handle source, int weight, int cut, int empty, py::handle sums,
                            py::handle entropies) {
  const Input input(source);
  const MapView& maps = input.numbers();
  const Output<float> to_sums(sums, maps.count), to_entropies(entropies, maps.count);
  const WithoutGil without(maps);
  return head_stats(maps, chosen(weight, Weight::mass), chosen_cut(cut), chosen(empty, Empty::zero),
                    to_sums.if_wanted(), to_entropies.if_wanted());
}

std::int64_t run_binarize(py::handle source, int cut, py::handle mask) {
  const Input input(source);
  const MapView& maps = input.maps();
  const Output<bool> to_mask(mask, maps.count * maps.grid_h * maps.grid_w);
  const WithoutGil without(maps);
  return binarize(maps, chosen_cut(cut), to_mask.data());
}

std::int64_t run_label(py::handle source, int cut, py::handle labels) {
  const Input input(source);
  const MapView& maps = input.maps();
  const Output<std::int32_t> to_labels(labels, maps.count * maps.grid_h * maps.grid_w);
  const WithoutGil without(maps);
  return label(maps, chosen_cut(cut), to_labels.data());
}

std::int64_t run_combine(py::handle source, int heads, py::handle weights, int border,
                         py::handle combined) {
  const Input input(source);
  const MapView& maps = input.numbers();
  const Taps taps = taps_of(weights, border);
  const std::int64_t groups = groups_of(maps, heads);
  const Output<float> to_combined(combined, groups * maps.grid_h * maps.grid_w);
  const WithoutGil without(maps);
  return combine(maps, heads, taps, to_combined.data());
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

// The arguments of boxes, checked.
struct BoxesOf {
  BoxesOf(py::handle source, int heads, py::handle weights, int border, py::handle valid_source,
          int region)
      : input(source),
        maps(input.numbers()),
        heads(heads),
        taps(taps_of(weights, border)),
        groups(groups_of(maps, heads)),
        keep(chosen(region, Keep::all)) {
    if (!valid_source.is_none()) valid_input.emplace(valid_source);
    valid = valid_view(valid_input, maps, groups);
  }

  std::int64_t write(Box* rows) const {
    const WithoutGil without(maps);
    return boxes(maps, heads, taps, valid, keep, rows);
  }

  Input input;
  const MapView& maps;
  int heads;
  Taps taps;
  std::int64_t groups;
  Keep keep;
  std::optional<Input> valid_input;
  MapView valid{};
};

std::int64_t run_boxes(py::handle source, int heads, py::handle weights, int border,
                       py::handle valid, int region, py::handle rows) {
  const BoxesOf given(source, heads, weights, border, valid, region);
  const Output<float> to_rows(rows, 7 * given.groups);
  return given.write(reinterpret_cast<Box*>(to_rows.data()));
}

py::tuple run_box_tensors(py::handle source, int heads, py::handle weights, int border,
                          py::handle valid, int region, const py::tuple& batch,
                          const py::type& answer) {
  if (exchange == nullptr) throw std::invalid_argument("there is no class of tensors yet");
  auto* const answer_class = reinterpret_cast<PyTypeObject*>(answer.ptr());
  if (PyType_IsSubtype(answer_class, &PyTuple_Type) == 0) {
    throw py::type_error("answer must be a class of tuples");
  }
  const BoxesOf given(source, heads, weights, border, valid, region);
  auto room = std::make_unique<BoxTensors>(given.groups, batch.size(), [&](std::size_t axis) {
    return batch[axis].cast<std::int64_t>();
  });
  const std::int64_t not_finite = given.write(room->rows());
  room->look_which_are_found();

  py::tuple tensors(BoxTensors::parts);
  BoxTensors* const shared = room.release();
  for (int i = 0; i < BoxTensors::parts; ++i) {
    void* made = nullptr;
    // Who then frees what it was given is not agreed upon, so that the memory is left.
    if (exchange->make(shared->part(i), &made) != 0) throw py::error_already_set();
    PyTuple_SET_ITEM(tensors.ptr(), i, static_cast<PyObject*>(made));
  }
  PyObject* const boxes = PyTuple_Type.tp_new(answer_class, py::make_tuple(tensors).ptr(), nullptr);
  if (boxes == nullptr) throw py::error_already_set();
  return py::make_tuple(not_finite, py::reinterpret_steal<py::object>(boxes));
}

double run_largest(py::handle source) {
  const Input input(source);
  const WithoutGil without(input.maps());
  return largest(input.numbers());
}

void run_mask_words(py::handle source, py::handle words) {
  const Mask mask = mask_of(look_at(source));
  const Output<std::uint32_t> to_words(words, words_of(mask.batch, mask.queries, mask.keys));
  const WithoutGil without(std::int64_t{mask.queries} * mask.keys);
  mask_words(mask, to_words.data());
}

void run_attention(py::handle query, py::handle key, py::handle value, py::handle words,
                   float scale, int threads, py::handle out) {
  Attention all = attention_of(look_at(query), look_at(key), look_at(value), scale);
  const Output<std::uint32_t> seen(words, words_of(all.batch, all.queries, all.keys));
  const std::int64_t numbers = numbers_of(all);
  const Output<float> to_out(out, numbers);
  all.seen = seen.data();
  all.out = to_out.data();
  const WithoutGil without(numbers);
  attention(all, threads);
}

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
  use_kernels(*found);
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
  info["kernels"] = kernels_in_use().name;
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
             py::arg("border"), py::arg("valid"), py::arg("region"), py::arg("rows"),
             "x1, y1, x2, y2, area, mass and score of each combined map, as float32.");
  module.def("box_tensors", &run_box_tensors, py::arg("maps"), py::arg("heads"), py::arg("taps"),
             py::arg("border"), py::arg("valid"), py::arg("region"), py::arg("batch"),
             py::arg("answer"),
             "The same as tensors over one piece of memory: xyxy, area, mass, score, found.");
  module.def("plain_shape", &plain_shape, py::arg("maps"), py::arg("least_axes"),
             "The shape of maps that can be read as they are, else None.");
  module.def("use_tensors", &use_tensors, py::arg("tensor_class"),
             "Which class of tensors is read and made, by DLPack's exchange in C.");
  module.def("largest", &run_largest, py::arg("maps"),
             "The largest magnitude of all cells; inf if one is not finite.");
  module.def("mask_words", &run_mask_words, py::arg("mask"), py::arg("words"),
             "For every 32 queries, each key's word of who sees it.");
  module.def("attention", &run_attention, py::arg("query"), py::arg("key"), py::arg("value"),
             py::arg("words"), py::arg("scale"), py::arg("threads"), py::arg("out"),
             "softmax(scale * Q K^T) V under such a mask, (batch, tokens, heads, value_dim).");
  module.def("set_num_threads", &set_num_threads, py::arg("count"));
  module.def("num_threads", &num_threads);
  module.def("use", &use, py::arg("name"), "Takes these kernels; the best if empty.");
  module.def("instruction_sets", &instruction_sets, "Which kernels run here, the best first.");
  module.def("forced", &forced, "FASTGROUND_IMPLEMENTATION, empty unless set.");
  module.def("build_info", &build_info, "What this extension was built from and with.");
}
