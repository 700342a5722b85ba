// The inverse of an autoregressive transform whose parameters a masked network gives: arguments and entry points.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/macros.h"
#include "common/stream.h"
#include "ops/coupling/coupling.h"

namespace gf {

// In the order of ACTIVATIONS in genfast/reference/masked_autoregressive.py.
enum class Activation : int { relu, tanh, elu, gelu, gelu_tanh, silu };
constexpr int kActivations = 6;
constexpr int kMaskedSpline = kScaleMaps;

// What maps one number, by the parameters that the network gives for it.
struct MaskedMap {
  int32_t kind;  // a ScaleMap: affine, with shift and raw scale; kMaskedSpline: [widths | heights | slopes]
  int32_t n_params;
  bool inverse;  // x = g^-1(z), and not g(z)
  // affine: clamp, offset, min_scale, gain, limit; spline: bound, least width, height and slope, factor of the logits
  double c0, c1, c2, c3, c4;
};

// The plan (masked_autoregressive_plan.h) says which unit is computed when. It is for tensors of certain sizes, whose
// sum is `total`; `rows` are those of the buffer that a block of samples keeps, `packed` counts the weights and biases
// that are read.
struct MaskedAutoregressiveForward {
  int64_t n, d, n_weights, n_biases, n_context, plan_size, n_adjoint;
  DType dtype;
  const void *z, *weights, *biases, *context;
  const int32_t* plan;
  int64_t total, rows, packed;
  int32_t activation;
  MaskedMap map;
  bool pass;  // all numbers are known: z goes through the network, and x is g(z; p(z))
  void *x, *log_det;
  void* sums;  // of a pass, as `adjoint` below, if they are kept for its backward
  void* workspace;
  Stream stream;
};

// The gradients of the parameters are products of `values`, what the layers read, and `adjoint`, the cotangents of the
// sums: [n_values, n] and [n_sums, n], the units of a layer in the order of the plan. Those of units that are not in
// the plan are left as they are.
struct MaskedAutoregressiveBackward {
  int64_t n, d, n_weights, n_biases, n_context, plan_size, n_adjoint;
  DType dtype;
  const void *z, *weights, *biases, *context, *x, *grad_x, *grad_log_det;
  const void* sums;  // of a pass
  const int32_t* plan;
  int64_t total, rows, packed, n_values, n_sums, tiles;  // tiles of kMaskedTile units
  int32_t activation;
  MaskedMap map;
  bool pass;
  void *grad_z, *grad_weights, *grad_biases, *grad_context;
  void* workspace;  // packed weights, buffers, values, adjoint
  Stream stream;

  int64_t buffers;  // numbers of the workspace before `values`
  GF_HD bool wants_products() const { return grad_weights != nullptr; }
  template <class T>
  GF_HD T* values() const {
    return static_cast<T*>(workspace) + buffers;
  }
  template <class T>
  GF_HD T* adjoint() const {
    return values<T>() + n_values * n;
  }
};
constexpr int64_t kMaskedTile = 32;

// On CUDA a block of threads takes kMaskedSamples samples at a time, with a buffer of its own, in the workspace where
// shared memory is too small. The number of blocks depends on the number of samples alone.
constexpr int64_t kMaskedSamples = 32;
inline int64_t masked_blocks(int64_t n) {
  constexpr int64_t kMost = 528;
  const int64_t groups = (n + kMaskedSamples - 1) / kMaskedSamples;
  return groups < kMost ? groups : kMost;
}
inline int64_t masked_shared_bytes(int64_t rows, DType dtype) {
  constexpr int64_t kMost = 160 * 1024;
  const int64_t bytes = rows * kMaskedSamples * (dtype == DType::f64 ? 8 : 4);
  return bytes <= kMost ? bytes : 0;
}

}  // namespace gf

GF_DECLARE_BACKENDS(void masked_autoregressive_forward(const MaskedAutoregressiveForward&);
                    void masked_autoregressive_backward(const MaskedAutoregressiveBackward&))
