// The drivers of row_op.h on the CPU.
#pragma once

#include "columns.h"
#include "row_op.h"

namespace gf {
inline namespace GF_BACKEND {

// Arguments whose parameters are of the type they are computed in, copies where they were not.
template <class T, class Args>
struct ComputeParameters {
  Args args;
  Scratch<T> copies;

  explicit ComputeParameters(const Args& given) : args(given), copies(is_half(given.dtype) ? sums_of(given) : 0) {
    if (!is_half(given.dtype)) return;
    T* next = copies.get();
    args.parameters([&](const void*& parameter, void*, int64_t count) {
      gather(parameter, given.dtype, count, next);
      parameter = next;
      next += count;
    });
  }
};

template <class Args>
void run_forward(const char*, const Args& given) {
  dispatch_real(given.dtype, [&](auto tag) {
    using Rows = ColumnRows<typename decltype(tag)::type>;
    const ComputeParameters<typename Rows::Number, Args> f(given);
    parallel_for(f.args.n, kChunkRows, [&](int64_t begin, int64_t end) {
      Rows rows(f.args.d, f.args.dtype);
      Scratch<typename Rows::Real> numbers(f.args.d);
      rows.for_each(begin, end, [&] { forward_rows(f.args, rows, numbers.get()); });
    });
  });
}

template <class Args>
void run_backward(const char*, const Args& given) {
  dispatch_real(given.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Rows = ColumnRows<T>;
    const ComputeParameters<T, Args> f(given);
    const int64_t sums = sums_of(given), d = given.d;
    for_chunks<T>(given.n, sums, given.workspace, [&](int64_t begin, int64_t end, T* part) {
      Rows rows(d, given.dtype);
      Scratch<typename Rows::Real> numbers(d), kept(given.kept() * d);
      rows.for_each(begin, end, [&] { backward_rows(f.args, rows, numbers.get(), kept.get(), part); });
    });
    Scratch<T> total(sums);
    add_chunks(given.n, sums, given.workspace, total.get());
    const T* next = total.get();
    Args(given).parameters([&](const void*, void* gradient, int64_t count) {
      scatter(next, count, gradient, given.dtype);
      next += count;
    });
  });
}

}  // namespace GF_BACKEND
}  // namespace gf
