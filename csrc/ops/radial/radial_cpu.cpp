// Radial flow on the CPU: all K layers over a block of rows at a time, as columns.
#include "common/columns.h"
#include "ops/radial/radial_math.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

// run(f, a number of the compute type) with the parameters in that type
template <class F>
void with_parameters(Radial f, F&& run) {
  dispatch_real(f.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Numbers<T> center(f.center, f.dtype, f.k * f.d), alpha(f.alpha, f.dtype, f.k), beta(f.beta, f.dtype, f.k);
    run(f, T());
  });
}

}  // namespace

void radial_forward(const Radial& given) {
  with_parameters(given, [](const Radial& f, auto number) {
    using Rows = ColumnRows<decltype(number)>;
    parallel_for(f.n, kChunkRows, [&](int64_t begin, int64_t end) {
      Rows rows(f.d, f.dtype);
      Scratch<typename Rows::Real> z(f.d);
      rows.for_each(begin, end, [&] { radial_forward_rows(f, rows, z.get()); });
    });
  });
}

void radial_backward(const Radial& given) {
  with_parameters(given, [](const Radial& f, auto number) {
    using T = decltype(number);
    using Rows = ColumnRows<T>;
    for_chunks<T>(f.n, radial_sums(f), f.workspace, [&](int64_t begin, int64_t end, T* part) {
      Rows rows(f.d, f.dtype);
      Scratch<typename Rows::Real> grad(f.d), kept(f.k * f.d);
      rows.for_each(begin, end, [&] { radial_backward_rows(f, rows, grad.get(), kept.get(), part); });
    });
    Scratch<T> total(radial_sums(f));
    add_chunks(f.n, radial_sums(f), f.workspace, total.get());
    scatter(total.get(), f.k * f.d, f.grad_center, f.dtype);
    scatter(total.get() + f.k * f.d, f.k, f.grad_alpha, f.dtype);
    scatter(total.get() + f.k * f.d + f.k, f.k, f.grad_beta, f.dtype);
  });
}

}  // namespace GF_BACKEND
}  // namespace gf
