// The Python face of the native core: the only file that knows pybind11, and it computes nothing.
#include <pybind11/pybind11.h>

namespace py = pybind11;

PYBIND11_MODULE(_core, module) {
  module.doc() = "Operations on batches of attention maps, in C++.";
  module.def(
      "build_info",
      [] {
        py::dict info;
        info["version"] = FASTGROUND_VERSION;
        info["compiler"] = FASTGROUND_COMPILER;
        info["build_type"] = FASTGROUND_BUILD_TYPE;
        info["cuda"] = FASTGROUND_CUDA;
        return info;
      },
      "What this extension was built from and with.");
}
