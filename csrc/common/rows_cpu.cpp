// Conversion between what tensors hold and what kernels compute with.
#include "rows.h"

#include "pack.h"

namespace gf {
inline namespace GF_BACKEND {

namespace {

template <class S, class T>
void gather_line(const S* p, int64_t stride, int64_t n, T* out, int64_t out_stride) {
  if (stride == 1 && out_stride == 1) {
    using P = Native<T>;
    int64_t i = 0;
    for (; i + P::size <= n; i += P::size) store(out + i, load<P>(p + i));
    for (; i < n; ++i) out[i] = to_real(p[i]);
  } else if (stride == 2 && out_stride == 1) {
    for (int64_t i = 0; i < n; ++i) out[i] = to_real(p[2 * i]);
  } else {
    for (int64_t i = 0; i < n; ++i) out[i * out_stride] = to_real(p[i * stride]);
  }
}

template <class S, class T>
void scatter_line(const T* in, int64_t in_stride, int64_t n, S* p, int64_t stride) {
  if (stride == 1 && in_stride == 1) {
    using P = Native<T>;
    int64_t i = 0;
    for (; i + P::size <= n; i += P::size) store(p + i, load<P>(in + i));
    for (; i < n; ++i) p[i] = from_real<S>(in[i]);
  } else if (stride == 2 && in_stride == 1) {
    for (int64_t i = 0; i < n; ++i) p[2 * i] = from_real<S>(in[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) p[i * stride] = from_real<S>(in[i * in_stride]);
  }
}

// Inner loops go along the longer side.
template <class S, class T>
void gather_matrix(const S* p, const Layout& m, T* out) {
  if (m.cols < m.rows) {
    for (int64_t j = 0; j < m.cols; ++j) gather_line(p + j * m.col, m.row, m.rows, out + j, m.cols);
  } else {
    for (int64_t i = 0; i < m.rows; ++i) gather_line(p + i * m.row, m.col, m.cols, out + i * m.cols, int64_t(1));
  }
}

template <class S, class T>
void scatter_matrix(const T* in, S* p, const Layout& m) {
  if (m.cols < m.rows) {
    for (int64_t j = 0; j < m.cols; ++j) scatter_line(in + j, m.cols, m.rows, p + j * m.col, m.row);
  } else {
    for (int64_t i = 0; i < m.rows; ++i) scatter_line(in + i * m.cols, int64_t(1), m.cols, p + i * m.row, m.col);
  }
}

}  // namespace

void gather(const void* p, DType t, const Layout& m, float* out) {
  if (t == DType::f16) return gather_matrix(static_cast<const Half*>(p), m, out);
  if (t == DType::bf16) return gather_matrix(static_cast<const BFloat16*>(p), m, out);
  gather_matrix(static_cast<const float*>(p), m, out);
}

void gather(const void* p, DType, const Layout& m, double* out) {
  gather_matrix(static_cast<const double*>(p), m, out);
}

void scatter(const float* in, void* p, DType t, const Layout& m) {
  if (t == DType::f16) return scatter_matrix(in, static_cast<Half*>(p), m);
  if (t == DType::bf16) return scatter_matrix(in, static_cast<BFloat16*>(p), m);
  scatter_matrix(in, static_cast<float*>(p), m);
}

void scatter(const double* in, void* p, DType, const Layout& m) { scatter_matrix(in, static_cast<double*>(p), m); }

}  // namespace GF_BACKEND
}  // namespace gf
