// DLPack's exchange in C, as much of it as is used: how the core reads and makes torch's tensors in
// a fraction of a microsecond and yet knows no torch.
//
// A class of tensors hands out a table of functions. One tells where a tensor's numbers are;
// another makes a tensor of numbers given to it, which calls the deleter when it goes; a third
// tells on which stream of a device work is put now, null on the CPU. The structures are laid out
// as DLPack 1.3 says: https://dmlc.github.io/dlpack/latest/c_api.html
#pragma once

#include <cstdint>

namespace fastground::dlpack {

constexpr std::uint32_t major_version = 1;  // another lays out memory otherwise

struct Version {
  std::uint32_t major, minor;
};

enum DeviceType : std::int32_t { cpu = 1, cuda = 2, pinned = 3 };

struct Device {
  std::int32_t type, id;
};

enum TypeCode : std::uint8_t { floating = 2, bfloat = 4, boolean = 6 };

struct DataType {
  std::uint8_t code, bits;
  std::uint16_t lanes;
  bool operator==(const DataType&) const = default;
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements
  std::uint64_t byte_offset;
};

struct Managed {
  Version version;
  void* owner;
  void (*deleter)(Managed*);
  std::uint64_t flags;
  Tensor tensor;
};

// An object is a PyObject*. All functions return 0, or say in Python what is wrong; make takes the
// tensor over.
struct Exchange {
  Version version;
  const Exchange* older;
  void* unused[2];
  int (*make)(Managed* tensor, void** object);
  int (*look)(void* object, Tensor* tensor);
  int (*stream)(std::int32_t device_type, std::int32_t device_id, void** stream);
};

// The table of the version known here, or null.
inline const Exchange* of_this_version(const Exchange* table) {
  while (table != nullptr && table->version.major != major_version) table = table->older;
  return table;
}

}  // namespace fastground::dlpack
