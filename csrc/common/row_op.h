// Ops on rows with parameters that all rows share, and whose gradients are sums over rows. Such an op writes its
// algorithm once, as two functions found by the type of its arguments:
//
//   forward_rows(args, rows, numbers)                  what a block of rows does
//   backward_rows(args, rows, numbers, kept, sums)     its adjoint; adds to `sums`, the gradients one after another
//
// `rows` is a ColumnRows (columns.h) or a GroupedRows (rows.cuh); `numbers` has room for a row of each, and `kept` for
// args.kept() of them. args.parameters(f) calls f(parameter, gradient, how many numbers) for each parameter. The files
// of each backend include a driver, row_op_cpu.h or row_op.cuh, and say GF_RUN_ROW_OP(radial, Radial, "radial_flow"):
// stem, struct, and what errors call it. row_op_args.h describes the arguments.
#pragma once

#include "backend.h"
#include "chunks.h"
#include "row_groups.h"

namespace gf {
inline namespace GF_BACKEND {

// How many numbers are summed over rows.
template <class Args>
int64_t sums_of(Args a) {
  int64_t n = 0;
  a.parameters([&](const void*, void*, int64_t count) { n += count; });
  return n;
}

// On a GPU each warp has sums of its own, and what is kept lies in the workspace, for the rows in flight.
template <class Args>
int64_t row_op_workspace(const Args& a, Backend b) {
  if (!on_gpu(b)) return chunk_workspace(a.n, sums_of(a));
  return chunk_workspace(a.n, kRowWarps * sums_of(a) + a.kept() * RowGroups(a.d).numbers());
}

}  // namespace GF_BACKEND
}  // namespace gf

#define GF_RUN_ROW_OP(op, Struct, title)                                \
  namespace gf {                                                        \
  inline namespace GF_BACKEND {                                         \
  void op##_forward(const Struct& args) { run_forward(title, args); }   \
  void op##_backward(const Struct& args) { run_backward(title, args); } \
  }                                                                     \
  }
