// How an op on rows (row_op.h) describes both of its kernels to Python at once:
//
//   GF_ROW_OP(radial, Radial) {                          // kernels radial_forward and radial_backward
//     k.size(GF(k));                                     // sizes beside n and d
//     k.parameter(GF(center), GF(grad_center), "k d");   // with its gradient, of the same shape
//     k.scalar(GF(inverse));
//     k.work([](const Args& f) { ... });                 // see kernel.h
//   }
//
// The struct has n, d, dtype, workspace, stream, and the tensors input and output [n, d], log_det [n] and their
// gradients. The order is that of genfast._differentiable: arguments, cotangents, scalars, results.
#pragma once

#include "kernel.h"
#include "row_op.h"

namespace gf {

template <class Args>
struct RowDescription {
  const Description<Args>& k;
  bool backward;
  std::vector<std::pair<Member, const char*>> gradients;
  std::vector<Member> scalars;

  RowDescription(const Description<Args>& description, bool is_backward) : k(description), backward(is_backward) {
    k.size(GF(n)), k.size(GF(d));
    k.type(GF(dtype));
    k.tensor(GF(input), "n d");
    gradients.emplace_back(GF(grad_input), "n d");
  }
  ~RowDescription() {
    if (backward) k.tensor(GF(grad_output), "n d"), k.tensor(GF(grad_log_det), "n").sum();
    for (const Member& m : scalars) k.scalar(m);
    if (!backward) {
      k.tensor(GF(output), "n d"), k.tensor(GF(log_det), "n").sum();
      return;
    }
    for (const auto& gradient : gradients) k.tensor(gradient.first, gradient.second);
    k.workspace(GF(workspace), DType::other, row_op_workspace<Args>);
  }
  // Sizes first: shapes name them.
  void size(Member m) { k.size(m); }
  void parameter(Member m, Member gradient, const char* shape) {
    k.tensor(m, shape);
    gradients.emplace_back(gradient, shape);
  }
  void scalar(Member m) { scalars.push_back(m); }
  void work(double (*f)(const Args&)) { k.work(f); }
};

}  // namespace gf

// clang-format off
#define GF_ROW_OP(op, Struct)                                                                       \
  template <class Args>                                                                             \
  static void op##_lines(gf::RowDescription<Args>&& k);                                             \
  GF_KERNEL(op##_forward, Struct) { op##_lines(gf::RowDescription<Args>(k, false)); }               \
  GF_KERNEL(op##_backward, Struct) { op##_lines(gf::RowDescription<Args>(k, true)); }               \
  template <class Args>                                                                             \
  static void op##_lines(gf::RowDescription<Args>&& k)
// clang-format on
