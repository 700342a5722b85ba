// The mean-field fixed point on the GPU: a block settles a row, and reads the weights of the units that have changed.
#include "common/launch.cuh"
#include "common/real.h"
#include "common/reduce.cuh"
#include "ops/dbm/dbm.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarpSize;

template <class T>
struct Layers {
  int count;
  int64_t units[kDbmLayers - 1], first[kDbmLayers - 1];
  const T* weights[kDbmLayers - 1];
};

template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    dbm_mean_field_kernel(Layers<T> layers, int64_t n, int64_t units, int64_t max_iterations, T tolerance, T threshold,
                          T* all_fields, T* all_means, T* workspace, int64_t* n_iterations) {
  for (int64_t row = blockIdx.x; row < n; row += gridDim.x) {
    T* field = all_fields + row * units;
    T* mean = all_means + row * units;
    T* used = workspace + row * units;
    T* rest = workspace + (n + row) * units;  // what is to be added to the neighbours' fields; mostly 0
    for (int64_t j = threadIdx.x; j < units; j += kThreads) used[j] = mean[j];
    __syncthreads();
    int64_t iteration = 1;
    for (bool done = false; !done; ++iteration) {
      T change = 0, bad = 0;
      for (int side = 0; side < 2; ++side) {
        for (int l = side; l < layers.count; l += 2) {
          for (int64_t j = layers.first[l] + threadIdx.x; j < layers.first[l] + layers.units[l]; j += kThreads) {
            const T now = sigmoid(field[j]), moved = abs(now - mean[j]), waits = now - used[j];
            change = moved > change ? moved : change;
            bad += moved - moved;
            const bool takes = !(abs(waits) <= threshold);
            mean[j] = now;
            rest[j] = takes ? waits : T(0);
            if (takes) used[j] = now;
          }
        }
        if (side == 1) {
          const T largest = block_max(change) + block_sum(bad);
          done = largest <= tolerance || iteration == max_iterations;
          if (done) break;
        }
        __syncthreads();
        for (int l = side; l < layers.count; l += 2) {
          const T* changed = rest + layers.first[l];
          if (l + 1 < layers.count) {
            const int64_t columns = layers.units[l + 1];
            for (int64_t k = threadIdx.x; k < columns; k += kThreads) {
              T sum = field[layers.first[l + 1] + k];
              GF_ROLLED
              for (int64_t j = 0; j < layers.units[l]; ++j)
                if (changed[j] != T(0)) sum += changed[j] * layers.weights[l][j * columns + k];
              field[layers.first[l + 1] + k] = sum;
            }
          }
        }
        // A layer between two of this side gets from both, one after the other.
        __syncthreads();
        for (int l = side; l < layers.count; l += 2) {
          const T* changed = rest + layers.first[l];
          if (l > 0) {
            const int64_t columns = layers.units[l];
            for (int64_t i = warp_index(); i < layers.units[l - 1]; i += kWarps) {
              T sum = 0;
              GF_ROLLED
              for (int64_t j = lane_index(); j < columns; j += kWarpSize)
                if (changed[j] != T(0)) sum += changed[j] * layers.weights[l - 1][i * columns + j];
              sum = warp_sum(sum);
              if (lane_index() == 0) field[layers.first[l - 1] + i] += sum;
            }
          }
        }
        __syncthreads();
      }
    }
    if (threadIdx.x == 0) n_iterations[row] = iteration - 1;
  }
}

template <class T>
void launch_mean_field(const DbmMeanField& f) {
  Layers<T> layers{};
  int64_t first = 0;
  for (int l = 0; l + 1 < kDbmLayers && f.layer_units(l) > 0; ++l) {
    layers.units[l] = f.layer_units(l);
    layers.first[l] = first;
    layers.weights[l] = l + 2 < kDbmLayers ? static_cast<const T*>(f.weights(l)) : nullptr;
    first += layers.units[l];
    layers.count = l + 1;
  }
  launch("dbm_mean_field", dbm_mean_field_kernel<T>, blocks_for(f.n, 1), kThreads, 0, f.stream, layers, f.n, f.units,
         f.max_iterations, static_cast<T>(f.tolerance), static_cast<T>(kMeanFieldRest * f.tolerance),
         static_cast<T*>(f.fields), static_cast<T*>(f.means), static_cast<T*>(f.workspace), f.n_iterations);
}

}  // namespace

void dbm_mean_field(const DbmMeanField& f) {
  f.dtype == DType::f64 ? launch_mean_field<double>(f) : launch_mean_field<float>(f);
}

}  // namespace GF_BACKEND
}  // namespace gf
