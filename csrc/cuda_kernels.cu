// How the kernels are started: which one, on how many blocks, with what memory.
#include "boxes_by_rows.cuh"
#include "cuda_kernels.hpp"
#include "large_stats.cuh"

namespace fastground {
namespace {

constexpr std::size_t most_shared = 48 * 1024;  // a block has that on every GPU, without asking
constexpr int warps_a_block = 8;

// Calls f with the number of words that a row has, as Count<1> or Count<4>.
template <int N>
struct Count {
  static constexpr int words = N;
};
template <class F>
auto with_words(int grid_w, F&& f) {
  return grid_w <= 64 ? f(Count<1>{}) : f(Count<4>{});
}

Maps maps_of(const MapView& maps) {
  return {maps.data, maps.dtype, maps.count, maps.stride_map, maps.grid_h, maps.grid_w};
}

unsigned at_most(std::int64_t wanted, std::int64_t most) {
  return static_cast<unsigned>(wanted < most ? wanted : most);
}

// Bytes that a warp needs, as its memory's own constructor says.
template <class Memory, class... Arguments>
std::size_t bytes_of(Arguments... arguments) {
  Arena arena(nullptr);
  Memory(arena, arguments...);
  return arena.most();
}
std::size_t bytes_of(Operation operation, int grid_h, int grid_w, Weight weight) {
  if (operation == Operation::combine) return bytes_of<Combiner>(grid_h, grid_w);
  return with_words(grid_w, [&](auto count) {
    constexpr int words = decltype(count)::words;
    if (operation == Operation::boxes) return bytes_of<BoxesMemory<words>>(grid_h, grid_w);
    if (operation == Operation::label) return bytes_of<Labels<words>>(grid_h, grid_w);
    return bytes_of<LargeStats<words>>(grid_h, grid_w, weight);
  });
}

// The blocks of one warp each and their memory: shared if it fits, else the workspace.
struct Room {
  unsigned blocks;
  std::size_t bytes;
  std::size_t shared_bytes;
  void* workspace;

  Room(std::size_t bytes, std::int64_t count, const CudaCall& call)
      : blocks(at_most(count, bytes <= most_shared ? most_blocks : most_in_workspace)),
        bytes(bytes),
        shared_bytes(bytes <= most_shared ? bytes : 0),
        workspace(bytes <= most_shared ? nullptr : call.workspace) {}
};

unsigned blocks_of_warps(std::int64_t count) {
  return at_most((count + warps_a_block - 1) / warps_a_block, most_blocks);
}

// How many maps a warp loads: a few where there would be too few warps.
int share_of(std::int64_t count) { return count <= many_maps ? 4 : warp_size; }

template <class T, int Strips, int Side = 0>
const char* launch_by_lane(const StatsCall& stats, const CudaCall& call) {
  const int share = share_of(stats.maps.count);
  const std::int64_t together = warps_a_block * share;
  const auto blocks = static_cast<unsigned>((stats.maps.count + together - 1) / together);
  const int words = words_a_map(stats.maps.grid_h * stats.maps.grid_w);
  return launch(stats_by_lane<T, Strips, Side>, call.device, call.stream, blocks,
                warps_a_block * warp_size, together * words * sizeof(std::uint32_t), stats, share);
}

template <class T>
const char* launch_by_lane(const StatsCall& stats, const CudaCall& call) {
  if constexpr (sizeof(T) <= 4) {  // cells of float64 are too wide to be held in registers
    if (stats.maps.grid_h == 24 && stats.maps.grid_w == 24) {
      return launch_by_lane<T, 12, 24>(stats, call);
    }
    if (stats.maps.grid_h <= 16) return launch_by_lane<T, 8>(stats, call);
    if (stats.maps.grid_h <= 24) return launch_by_lane<T, 12>(stats, call);
  }
  return launch_by_lane<T, 16>(stats, call);
}

template <class T, int Side>
const char* launch_few(const StatsCall& stats, const CudaCall& call) {
  const Maps& maps = stats.maps;
  return launch(stats_of_few<T, Side>, call.device, call.stream, static_cast<unsigned>(maps.count),
                warp_size, bytes_of<LargeStats<1>>(maps.grid_h, maps.grid_w, Weight::area), stats);
}

Filter filter_of(const MapView& maps, int heads, const Taps& taps, const double* weights) {
  return {weights, taps.count, taps.border, floats_suffice(maps, heads, taps)};
}

template <class T, int Side>
const char* launch_by_rows(const BoxesCall& boxes, std::int64_t groups, const CudaCall& call) {
  const int warps = groups <= few_maps ? 1 : warps_a_block;
  const std::size_t bytes = bytes_of<RowsMemory>(boxes.maps.grid_h, boxes.maps.grid_w);
  return launch(boxes_by_rows<T, Side>, call.device, call.stream,
                at_most((groups + warps - 1) / warps, most_of_lanes), warps * warp_size,
                warps * bytes, boxes, groups, bytes);
}

}  // namespace

std::size_t cuda_workspace_bytes(Operation operation, int grid_h, int grid_w, std::int64_t count) {
  const std::size_t area = bytes_of(operation, grid_h, grid_w, Weight::area);
  const std::size_t mass = bytes_of(operation, grid_h, grid_w, Weight::mass);
  const std::size_t bytes = area > mass ? area : mass;
  return bytes <= most_shared ? 0 : bytes * at_most(count, most_in_workspace);
}

const char* cuda_head_stats(const MapView& maps, Weight weight, Cut cut, Empty empty,
                            const CudaCall& call, float* sums, float* entropies) {
  if (maps.count == 0) return nullptr;
  const float nothing = empty == Empty::inf ? INFINITY : 0.0f;
  const StatsCall stats = {maps_of(maps), cut, nothing, call.n_ln_n, sums, entropies};
  if (entropies == nullptr) {
    return with_number_type(maps.dtype, [&](auto type) {
      return launch(sums_by_warp<decltype(type)>, call.device, call.stream,
                    blocks_of_warps(maps.count), warps_a_block * warp_size, 0, stats.maps, sums);
    });
  }
  if (weight == Weight::area && maps.grid_h <= 32 && maps.grid_w <= 32) {
    return with_number_type(maps.dtype, [&](auto type) {
      using T = decltype(type);
      if (maps.count > few_maps) return launch_by_lane<T>(stats, call);
      if (maps.grid_h == 24 && maps.grid_w == 24) return launch_few<T, 24>(stats, call);
      return launch_few<T, 0>(stats, call);
    });
  }
  const Room room(bytes_of(Operation::head_stats, maps.grid_h, maps.grid_w, weight), maps.count,
                  call);
  return with_words(maps.grid_w, [&](auto count) {
    return launch(stats_by_warp<decltype(count)::words>, call.device, call.stream, room.blocks,
                  warp_size, room.shared_bytes, stats, weight, room.workspace, room.bytes);
  });
}

const char* cuda_binarize(const MapView& maps, Cut cut, const CudaCall& call, bool* mask) {
  if (maps.count == 0) return nullptr;
  return with_number_type(maps.dtype, [&](auto type) {
    return launch(binarize_by_warp<decltype(type)>, call.device, call.stream,
                  blocks_of_warps(maps.count), warps_a_block * warp_size, 0, maps_of(maps), cut,
                  mask);
  });
}

const char* cuda_label(const MapView& maps, Cut cut, const CudaCall& call, std::int32_t* labels) {
  if (maps.count == 0) return nullptr;
  const std::size_t bytes = bytes_of(Operation::label, maps.grid_h, maps.grid_w, Weight::area);
  const Room room(bytes, maps.count, call);
  return with_words(maps.grid_w, [&](auto count) {
    return launch(label_by_warp<decltype(count)::words>, call.device, call.stream, room.blocks,
                  warp_size, room.shared_bytes, maps_of(maps), cut, room.workspace, room.bytes,
                  labels);
  });
}

const char* cuda_combine(const MapView& maps, int heads, const Taps& taps, const double* weights,
                         const CudaCall& call, float* combined) {
  if (maps.count == 0) return nullptr;
  const std::int64_t groups = maps.count / heads;
  const Filter filter = filter_of(maps, heads, taps, weights);
  if (filter.by_floats && fits_lanes(filter.count / 2, maps.grid_h, maps.grid_w)) {
    return with_narrow_type(maps.dtype, [&](auto type) {
      return with_radius(filter.count / 2, [&](auto radius) {
        return launch(combine_by_lanes<decltype(type), decltype(radius)::value>, call.device,
                      call.stream, at_most(blocks_of_warps(groups), most_of_lanes),
                      warps_a_block * warp_size, 0, maps_of(maps), groups, heads, filter, combined);
      });
    });
  }
  const std::size_t bytes = bytes_of(Operation::combine, maps.grid_h, maps.grid_w, Weight::area);
  const Room room(bytes, groups, call);
  return launch(combine_by_warp, call.device, call.stream, room.blocks, warp_size,
                room.shared_bytes, maps_of(maps), heads, filter, room.workspace, room.bytes,
                combined);
}

const char* cuda_boxes(const MapView& maps, int heads, const Taps& taps, const double* weights,
                       const MapView& valid, Keep keep, const CudaCall& call, Box* out,
                       bool* found) {
  if (maps.count == 0) return nullptr;
  const std::int64_t groups = maps.count / heads;
  const BoxesCall boxes = {maps_of(maps), heads,          filter_of(maps, heads, taps, weights),
                           keep,          maps_of(valid), out,
                           found};
  if (fits_rows(boxes.filter, maps.grid_h, maps.grid_w)) {
    return with_narrow_type(maps.dtype, [&](auto type) {
      using T = decltype(type);
      if (maps.grid_h == 24 && maps.grid_w == 24) return launch_by_rows<T, 24>(boxes, groups, call);
      return launch_by_rows<T, 0>(boxes, groups, call);
    });
  }
  const std::size_t bytes = bytes_of(Operation::boxes, maps.grid_h, maps.grid_w, Weight::area);
  const Room room(bytes, groups, call);
  return with_words(maps.grid_w, [&](auto count) {
    return launch(boxes_by_warp<decltype(count)::words>, call.device, call.stream, room.blocks,
                  warp_size, room.shared_bytes, boxes, room.workspace, room.bytes);
  });
}

}  // namespace fastground
