#include <stdexcept>

#include "common/kernel.h"
#include "ops/masked_autoregressive/masked_autoregressive.h"

namespace gf {

namespace {

template <class Args>
void describe_inputs(const Description<Args>& k) {
  k.size(GF(n)), k.size(GF(d)), k.size(GF(n_weights)), k.size(GF(n_biases)), k.size(GF(n_context));
  k.size(GF(plan_size));
  k.type(GF(dtype));
  k.tensor(GF(z), "n d");
  k.tensor(GF(weights), "n_weights");
  k.tensor(GF(biases), "n_biases");
  k.tensor(GF(context), "n n_context").optional();
}

template <class Args>
void describe_network(const Description<Args>& k) {
  k.tensor(GF(plan), "plan_size");
  k.scalar(GF(total));
  k.scalar(GF(rows));
  k.scalar(GF(packed));
  k.scalar(GF(activation));
  k.scalar(GF(map.kind));
  k.scalar(GF(map.n_params));
  k.scalar(GF(map.inverse));
  k.scalar(GF(map.c0));
  k.scalar(GF(map.c1));
  k.scalar(GF(map.c2));
  k.scalar(GF(map.c3));
  k.scalar(GF(map.c4));
}

template <class Args>
int64_t workspace(const Args& a, Backend backend) {
  const bool buffers = on_gpu(backend) && masked_shared_bytes(a.rows, a.dtype) == 0;
  return a.packed + (buffers ? masked_blocks(a.n) * a.rows * kMaskedSamples : 0);
}

// A plan reads and writes where its own network has units.
void check_total(int64_t sizes, int64_t total) {
  if (sizes != total)
    throw std::invalid_argument(
        "plan: expected tensors of the sizes that it is for: weights, biases, context, values, adjoint");
}

template <class Args>
int64_t sizes(const Args& a) {
  return a.d + a.n_weights + a.n_biases + a.n_context + a.plan_size;
}

template <class Args>
void check_map(const Args& a) {
  const MaskedMap& m = a.map;
  if (m.kind < 0 || m.kind > kMaskedSpline || a.activation < 0 || a.activation >= kActivations ||
      (m.kind == kMaskedSpline ? m.n_params < 2 || m.n_params % 3 != 2 : m.n_params != 2))
    throw std::invalid_argument("masked_autoregressive: no such map or activation");
}

// Nanoseconds of a sample: about a weight in 20 picoseconds, and the maps.
template <class Args>
double work(const Args& a) {
  return static_cast<double>(a.n) * (0.05 * static_cast<double>(a.packed) + 2.0 * static_cast<double>(a.d)) +
         static_cast<double>(a.packed);
}

}  // namespace

GF_KERNEL(masked_autoregressive_forward, MaskedAutoregressiveForward) {
  describe_inputs(k);
  describe_network(k);
  k.tensor(GF(x), "n d");
  k.tensor(GF(log_det), "n").sum();
  k.workspace(GF(workspace), DType::other, workspace<Args>);
  k.prepare([](Args& a, Backend) {
    check_map(a);
    check_total(sizes(a), a.total);
  });
  k.work(work<Args>);
}

GF_KERNEL(masked_autoregressive_backward, MaskedAutoregressiveBackward) {
  describe_inputs(k);
  k.size(GF(n_values)), k.size(GF(n_adjoint));
  k.tensor(GF(x), "n d");
  k.tensor(GF(grad_x), "n d");
  k.tensor(GF(grad_log_det), "n").sum();
  describe_network(k);
  k.tensor(GF(grad_z), "n d");
  k.tensor(GF(grad_context), "n n_context").optional();
  k.tensor(GF(values), "n_values n").sum();
  k.tensor(GF(adjoint), "n_adjoint n").sum();
  k.workspace(GF(workspace), DType::other, workspace<Args>);
  k.prepare([](Args& a, Backend) {
    check_map(a);
    check_total(sizes(a) + a.n_values + a.n_adjoint, a.total);
    if ((a.context == nullptr) != (a.grad_context == nullptr))
      throw std::invalid_argument("grad_context: expected context and grad_context, or neither");
  });
  k.work(work<Args>);
}

GF_KERNEL(masked_autoregressive_products, MaskedAutoregressiveProducts) {
  k.size(GF(n)), k.size(GF(n_weights)), k.size(GF(n_biases)), k.size(GF(plan_size));
  k.size(GF(n_values)), k.size(GF(n_adjoint));
  k.type(GF(wide), kWide), k.type(GF(dtype));
  k.tensor(GF(values), "n_values n");
  k.tensor(GF(adjoint), "n_adjoint n");
  k.tensor(GF(plan), "plan_size");
  k.scalar(GF(total)), k.scalar(GF(tiles));
  k.tensor(GF(grad_weights), "n_weights").of("dtype");
  k.tensor(GF(grad_biases), "n_biases").of("dtype");
  k.prepare([](Args& a, Backend) {
    check_total(a.n_weights + a.n_biases + a.plan_size + a.n_values + a.n_adjoint, a.total);
  });
  k.work([](const Args& a) { return 0.05 * static_cast<double>(a.n) * static_cast<double>(a.n_weights); });
}

}  // namespace gf
