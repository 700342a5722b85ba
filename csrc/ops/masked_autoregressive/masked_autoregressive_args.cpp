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
  k.scalar(GF(pass));
}

// Packed weights, and on a GPU the buffers that do not fit into shared memory.
template <class Args>
int64_t buffers(const Args& a, Backend backend) {
  const bool needed = on_gpu(backend) && masked_shared_bytes(a.rows, a.dtype) == 0;
  return (a.packed + (needed ? masked_blocks(a.n) * a.rows * kMaskedSamples : 0) + 15) / 16 * 16;
}

// A plan reads and writes where its own network has units.
void check_total(int64_t sizes, int64_t total) {
  if (sizes != total)
    throw std::invalid_argument(
        "plan: expected tensors of the sizes that it is for, weights, biases, context and sums");
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
  k.size(GF(n_adjoint));
  k.tensor(GF(x), "n d");
  k.tensor(GF(log_det), "n").sum();
  k.tensor(GF(sums), "n_adjoint n").sum().optional();
  k.workspace(GF(workspace), DType::other, buffers<Args>);
  k.prepare([](Args& a, Backend) {
    check_map(a);
    check_total(sizes(a) + a.n_adjoint, a.total);
  });
  k.work(work<Args>);
}

GF_KERNEL(masked_autoregressive_backward, MaskedAutoregressiveBackward) {
  describe_inputs(k);
  k.size(GF(n_adjoint));
  k.tensor(GF(x), "n d");
  k.tensor(GF(grad_x), "n d");
  k.tensor(GF(grad_log_det), "n").sum();
  k.tensor(GF(sums), "n_adjoint n").sum().optional();
  describe_network(k);
  k.scalar(GF(n_values)), k.scalar(GF(n_sums)), k.scalar(GF(tiles));
  k.tensor(GF(grad_z), "n d");
  k.tensor(GF(grad_weights), "n_weights").optional();
  k.tensor(GF(grad_biases), "n_biases").optional();
  k.tensor(GF(grad_context), "n n_context").optional();
  k.workspace(GF(workspace), DType::other, [](const Args& a, Backend) {
    return a.buffers + (a.wants_products() ? (a.n_values + a.n_sums) * a.n : 0);
  });
  k.prepare([](Args& a, Backend backend) {
    check_map(a);
    check_total(sizes(a) + a.n_values + a.n_sums, a.total);
    if (a.pass ? a.sums == nullptr || a.n_adjoint != a.n_sums : a.sums != nullptr)
      throw std::invalid_argument("sums: expected the sums of a pass, or none");
    if ((a.grad_weights == nullptr) != (a.grad_biases == nullptr))
      throw std::invalid_argument("grad_weights: expected grad_weights and grad_biases, or neither");
    if ((a.context == nullptr) != (a.grad_context == nullptr))
      throw std::invalid_argument("grad_context: expected context and grad_context, or neither");
    a.buffers = buffers(a, backend);
  });
  k.work(work<Args>);
}

}  // namespace gf
