// The only place that launches kernels:
//   launch("planar_forward", planar_forward_kernel<float>, grid, block, shared_bytes, stream, args...);
// It runs on the given stream of the given device, restores the caller's device, neither allocates nor synchronises (so
// it can be captured in a CUDA graph), and throws std::runtime_error naming kernel and launch shape on failure. An
// empty grid is a launch with nothing to do.
#pragma once

#include <cstddef>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "device.cuh"
#include "stream.h"

namespace gf {
inline namespace GF_BACKEND {

#if defined(GF_SIMT)

template <class... Params, class... Args>
void launch(const char* name, void (*kernel)(Params...), dim3 grid, dim3 block, std::size_t shared_bytes, Stream,
            Args&&... args) {
  static_assert(sizeof...(Params) == sizeof...(Args), "the kernel takes another number of arguments");
  struct Call {
    void (*kernel)(Params...);
    std::tuple<Params...> arguments;
  } call{kernel, std::tuple<Params...>(static_cast<Params>(args)...)};
  ::gf::emu::run_grid(
      name, grid, block, shared_bytes,
      [](void* c) { std::apply(static_cast<Call*>(c)->kernel, static_cast<Call*>(c)->arguments); }, &call);
}

#else

namespace launch_detail {

// The architectures this file was compiled for, as "sm_80, sm_90".
inline std::string built_for() {
  std::string text;
  for (const int arch : {__CUDA_ARCH_LIST__}) text += (text.empty() ? "sm_" : ", sm_") + std::to_string(arch / 10);
  return text;
}

inline std::string shape_text(dim3 s) {
  return "(" + std::to_string(s.x) + ", " + std::to_string(s.y) + ", " + std::to_string(s.z) + ")";
}

[[noreturn]] inline void fail(const char* name, dim3 grid, dim3 block, std::size_t shared_bytes, int device,
                              const char* step, cudaError_t error) {
  cudaGetLastError();  // clears it, so that the next launch does not report it again
  std::string text = std::string("CUDA kernel ") + name + " on device " + std::to_string(device) + ", grid " +
                     shape_text(grid) + ", block " + shape_text(block) + ", " + std::to_string(shared_bytes) +
                     " bytes of dynamic shared memory: " + step + " failed: " + cudaGetErrorString(error);
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion ||
      error == cudaErrorInvalidDeviceFunction) {
    int major = 0;
    int minor = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    const std::string arch = std::to_string(major) + std::to_string(minor);
    text += ". The device is sm_" + arch + "; this build of genfast has code for " + built_for() +
            ". Rebuild it with `pip install . -C cmake.define.GENFAST_CUDA_ARCHS=" + arch + "`";
  } else if (error == cudaErrorInsufficientDriver) {
    text += ". Update the NVIDIA driver or build genfast with an older CUDA toolkit";
  }
  throw std::runtime_error(text);
}

// Makes a device current for one scope.
class DeviceGuard {
 public:
  cudaError_t enter(int device) {
    cudaError_t error = cudaGetDevice(&previous_);
    if (error != cudaSuccess || device < 0 || device == previous_) return error;
    error = cudaSetDevice(device);
    entered_ = error == cudaSuccess;
    return error;
  }
  ~DeviceGuard() {
    if (entered_) cudaSetDevice(previous_);
  }
  DeviceGuard() = default;
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = -1;
  bool entered_ = false;
};

// Lets a kernel have as much dynamic shared memory as the device gives a block; once a device and kernel, and never
// less again, since a launch on another thread or in a captured graph may need it.
inline cudaError_t raise_shared_limit(const void* kernel, int device) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int> > raised;
  const std::lock_guard<std::mutex> lock(mutex);
  if (raised.count({kernel, device})) return cudaSuccess;
  int limit = 0;
  cudaFuncAttributes attributes{};
  cudaError_t error = cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, kernel);
  if (error == cudaSuccess)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 limit - static_cast<int>(attributes.sharedSizeBytes));
  if (error == cudaSuccess) raised.insert({kernel, device});
  return error;
}

inline void run(const char* name, const void* kernel, dim3 grid, dim3 block, std::size_t shared_bytes, Stream stream,
                void** arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  DeviceGuard guard;
  const auto check = [&](const char* step, cudaError_t error) {
    if (error != cudaSuccess) fail(name, grid, block, shared_bytes, stream.device, step, error);
  };
  check("selecting the device", guard.enter(stream.device));
  constexpr std::size_t kLimitWithoutAsking = 48 * 1024;
  if (shared_bytes > kLimitWithoutAsking)
    check("raising the limit of dynamic shared memory", raise_shared_limit(kernel, stream.device));
  check("the launch",
        cudaLaunchKernel(kernel, grid, block, arguments, shared_bytes, static_cast<cudaStream_t>(stream.handle)));
}

}  // namespace launch_detail

template <class... Params, class... Args>
void launch(const char* name, void (*kernel)(Params...), dim3 grid, dim3 block, std::size_t shared_bytes, Stream stream,
            Args&&... args) {
  static_assert(sizeof...(Params) == sizeof...(Args), "the kernel takes another number of arguments");
  std::tuple<std::remove_cv_t<Params>...> values(static_cast<Params>(args)...);
  std::apply(
      [&](auto&... value) {
        void* arguments[sizeof...(Params) + 1] = {static_cast<void*>(&value)...};
        launch_detail::run(name, reinterpret_cast<const void*>(kernel), grid, block, shared_bytes, stream, arguments);
      },
      values);
}

#endif

}  // namespace GF_BACKEND
}  // namespace gf
