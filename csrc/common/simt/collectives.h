// Barriers, shuffles and votes of CUDA, on gf::emu's block_barrier and warp_collective. Not __reduce_*_sync: sm_75 has
// none; see reduce.cuh.
// The trailing file and line are those of the call, for error messages.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/simt/runtime.h"

#define GF_SIMT_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(GF_SIMT_SITE) { gf::emu::block_barrier("__syncthreads", false, {file, line}); }
inline int __syncthreads_count(int predicate, GF_SIMT_SITE) {
  return gf::emu::block_barrier("__syncthreads_count", predicate != 0, {file, line}).in_favour;
}
inline int __syncthreads_or(int predicate, GF_SIMT_SITE) {
  return gf::emu::block_barrier("__syncthreads_or", predicate != 0, {file, line}).in_favour != 0;
}
inline int __syncthreads_and(int predicate, GF_SIMT_SITE) {
  const gf::emu::BarrierVote vote = gf::emu::block_barrier("__syncthreads_and", predicate != 0, {file, line});
  return vote.in_favour == vote.arrived;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, GF_SIMT_SITE) {
  gf::emu::warp_collective("__syncwarp", mask, nullptr, [](void* const*) {}, {file, line});
}

namespace gf::emu {

struct ShuffleLane {
  std::uint64_t value;
  int source;
  std::uint64_t result;
};

inline void combine_shuffle(void* const* payloads) {
  for (int lane = 0; lane < 32; ++lane) {
    ShuffleLane* to = static_cast<ShuffleLane*>(payloads[lane]);
    if (to == nullptr) continue;
    const ShuffleLane* from = static_cast<const ShuffleLane*>(payloads[to->source]);
    if (from == nullptr) fail("shuffle: lane %d reads lane %d, which does not take part in it", lane, to->source);
    to->result = from->value;
  }
}

template <class T>
T shuffle(const char* what, unsigned mask, T value, int source, int width, Site site) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "CUDA shuffles 4- and 8-byte numbers");
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) fail("%s: width is %d, not a power of two", what, width);
  ShuffleLane payload{0, source, 0};
  std::memcpy(&payload.value, &value, sizeof(T));
  warp_collective(what, mask, &payload, combine_shuffle, site);
  std::memcpy(&value, &payload.result, sizeof(T));
  return value;
}

inline int segment(int width) { return lane() & ~(width - 1); }

template <class T, T (*op)(T, T)>
T warp_reduction(const char* what, unsigned mask, T value, Site site) {
  warp_collective(
      what, mask, &value,
      [](void* const* payloads) {
        T total{};
        bool first = true;
        for (int lane = 0; lane < 32; ++lane) {
          if (payloads[lane] == nullptr) continue;
          const T v = *static_cast<const T*>(payloads[lane]);
          total = first ? v : op(total, v);
          first = false;
        }
        for (int lane = 0; lane < 32; ++lane) {
          if (payloads[lane] != nullptr) *static_cast<T*>(payloads[lane]) = total;
        }
      },
      site);
  return value;
}

template <class T>
T op_min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
T op_max(T a, T b) {
  return a < b ? b : a;
}
inline unsigned op_or(unsigned a, unsigned b) { return a | b; }

}  // namespace gf::emu

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, GF_SIMT_SITE) {
  const int from = gf::emu::segment(width) + (source & (width - 1));
  return gf::emu::shuffle("__shfl_sync", mask, value, from, width, {file, line});
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, GF_SIMT_SITE) {
  const long from = static_cast<long>(gf::emu::lane()) - static_cast<long>(delta);
  const int own = gf::emu::lane();
  return gf::emu::shuffle("__shfl_up_sync", mask, value, from < gf::emu::segment(width) ? own : static_cast<int>(from),
                          width, {file, line});
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, GF_SIMT_SITE) {
  const long from = static_cast<long>(gf::emu::lane()) + static_cast<long>(delta);
  const int own = gf::emu::lane();
  return gf::emu::shuffle("__shfl_down_sync", mask, value,
                          from >= gf::emu::segment(width) + width ? own : static_cast<int>(from), width, {file, line});
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, GF_SIMT_SITE) {
  const int own = gf::emu::lane();
  const int from = own ^ lane_mask;
  const bool inside = from >= 0 && from < gf::emu::segment(width) + width;
  return gf::emu::shuffle("__shfl_xor_sync", mask, value, inside ? from : own, width, {file, line});
}

inline unsigned __ballot_sync(unsigned mask, int predicate, GF_SIMT_SITE) {
  return gf::emu::warp_reduction<unsigned, gf::emu::op_or>("__ballot_sync", mask,
                                                           predicate != 0 ? 1u << gf::emu::lane() : 0u, {file, line});
}
inline int __any_sync(unsigned mask, int predicate, GF_SIMT_SITE) {
  return gf::emu::warp_reduction<int, gf::emu::op_max>("__any_sync", mask, predicate != 0, {file, line});
}
inline int __all_sync(unsigned mask, int predicate, GF_SIMT_SITE) {
  return gf::emu::warp_reduction<int, gf::emu::op_min>("__all_sync", mask, predicate != 0, {file, line});
}

#undef GF_SIMT_SITE
