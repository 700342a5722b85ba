// The CDF of mixtures on the CPU. Lanes are numbers: the parameters of a register's worth of them are transposed into
// columns. Incomplete blocks, half types and rows that a few numbers share pass through a buffer of full rows in the
// compute type; a row that more numbers share than a register holds is prepared once a chunk.
#include <type_traits>

#include "common/parallel.h"
#include "common/scratch.h"
#include "common/tile.h"
#include "ops/mixture_cdf/mixture_cdf_math.h"
#include "ops/mixture_cdf/mixture_cdf_rows.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

constexpr int64_t kGrain = 1024;
constexpr int kTile = 256;  // numbers of a shared row at a time

// What components are evaluated with, in columns.
template <class P>
struct Columns {
  P *logit, *weight, *mean, *scale, *log_scale;
  int count;
  P total;

  explicit Columns(P* memory, int n)
      : logit(memory),
        weight(memory + n),
        mean(memory + 2 * n),
        scale(memory + 3 * n),
        log_scale(memory + 4 * n),
        count(n) {}
  static int64_t numbers(int64_t n) { return 5 * n; }
  GF_HD MixtureComponent<P> operator[](int k) const { return {logit[k], weight[k], mean[k], scale[k]}; }

  // From raw logits and log-scales.
  GF_NOINLINE void prepare() {
    P top = logit[0];
    for (int k = 1; k < count; ++k) top = max(top, logit[k]);
    total = P(0);
    for (int k = 0; k < count; ++k) {
      const MixtureComponent<P> c = mixture_component(logit[k], top, mean[k], log_scale[k]);
      logit[k] = c.logit;
      weight[k] = c.weight;
      scale[k] = c.scale;
      total += c.weight;
    }
  }
};

// Where a register of numbers lies; parameters in rows `stride` apart.
template <class T>
struct Rows {
  const T *x, *y, *grad_y, *grad_log_det, *logits, *means, *log_scales;
  T *out, *log_det, *grad_x, *grad_logits, *grad_means, *grad_log_scales;
  int64_t stride;
};

template <bool kNormal, class P, class T>
GF_NOINLINE void map_numbers(const Rows<T>& f, const Columns<P>& c, const MixtureOptions& o) {
  P x = load<P>(f.x);
  if (o.inverse) x = mixture_solve<kNormal>(c, mixture_target<kNormal>(x, o.output));
  MixtureSums<P> s;
  mixture_sums<kNormal, false>(c, x, &s);
  const MixturePoint<P> p = mixture_point(s, o.output);
  store(f.out, o.inverse ? x : p.y);
  store(f.log_det, o.inverse ? -p.log_det : p.log_det);
}

// `f.y` may be missing: then the inverse is solved again. add(k, gradient) for each component.
template <bool kNormal, class P, class T, class F>
GF_HD void pull_numbers(const Rows<T>& f, const Columns<P>& c, const MixtureOptions& o, F&& add) {
  P x = load<P>(f.x);
  auto inside = x == x;
  if (o.inverse) {
    const MixtureTarget<P> target = mixture_target<kNormal>(x, o.output);
    inside = target.inside;
    x = f.y ? load<P>(f.y) : mixture_solve<kNormal>(c, target);
  }
  MixtureSums<P> s;
  mixture_sums<kNormal, true>(c, x, &s);
  const MixtureAdjoint<P> a = mixture_adjoint(s, o, load<P>(f.grad_y), load<P>(f.grad_log_det));
  store(f.grad_x, select(inside | (a.argument != a.argument), a.argument, P(0)));
  for (int k = 0; k < c.count; ++k) {
    MixtureGradient<P> g = mixture_gradient(mixture_term<kNormal>(c[k], x, s), a);
    g.log_scale = select(abs(c.log_scale[k]) > P(T(kMostLogScale)), P(0), g.log_scale);
    add(k, g);
  }
}

// One register of numbers with rows of their own.
template <bool kNormal, class P, class T>
void block(const Rows<T>& f, Columns<P>& c, const MixtureOptions& o) {
  load_columns<P::size>(f.logits, f.stride, c.count, c.logit);
  load_columns<P::size>(f.means, f.stride, c.count, c.mean);
  load_columns<P::size>(f.log_scales, f.stride, c.count, c.log_scale);
  c.prepare();
  if (!f.grad_x) return map_numbers<kNormal>(f, c, o);
  pull_numbers<kNormal>(f, c, o, [&](int k, const MixtureGradient<P>& g) {
    c.logit[k] = g.logit;
    c.mean[k] = g.mean;
    c.log_scale[k] = g.log_scale;
  });
  store_columns<P::size>(f.grad_logits, f.stride, c.count, c.logit);
  store_columns<P::size>(f.grad_means, f.stride, c.count, c.mean);
  store_columns<P::size>(f.grad_log_scales, f.stride, c.count, c.log_scale);
}

// Rows begin ... end of parameters, each read by `repeats` numbers, no more than lanes.
template <bool kNormal, class S>
void few_numbers(const MixtureArrays<S>& a, const MixtureSizes& z, const MixtureOptions& o, int64_t begin,
                 int64_t end) {
  using T = compute_t<S>;
  using P = Native<T>;
  constexpr int kLanes = P::size;
  const int n = static_cast<int>(z.components);
  Scratch<P> memory(Columns<P>::numbers(n));
  Columns<P> columns(memory.get(), n);
  int64_t i = begin;
  if constexpr (std::is_same<S, T>::value) {
    for (; z.repeats == 1 && i + kLanes <= end; i += kLanes) {
      Rows<T> f{};
      const int64_t at = i * z.stride;
      f.x = a.x + i, f.logits = a.logits + at, f.means = a.means + at, f.log_scales = a.log_scales + at;
      f.stride = z.stride;
      if (a.backward()) {
        f.y = a.y ? a.y + i : nullptr, f.grad_y = a.grad_y + i, f.grad_log_det = a.grad_log_det + i;
        f.grad_x = a.grad_x + i, f.grad_logits = a.grad_logits + at;
        f.grad_means = a.grad_means + at, f.grad_log_scales = a.grad_log_scales + at;
      } else {
        f.out = a.out + i, f.log_det = a.log_det + i;
      }
      block<kNormal>(f, columns, o);
    }
  }
  if (i == end) return;

  Scratch<T> buffer(kLanes * (7 + 6 * n));
  T* next = buffer.get();
  const auto take = [&](int64_t width) {
    T* p = next;
    next += kLanes * width;
    return p;
  };
  T *x = take(1), *y = take(1), *grad_y = take(1), *grad_log_det = take(1), *out = take(1), *log_det = take(1);
  T *grad_x = take(1), *parameters[3], *grads[3];
  for (T*& p : parameters) p = take(n);
  for (T*& p : grads) p = take(n);
  for (T* p = buffer.get(); p < next; ++p) *p = 0;
  Rows<T> f{x,   y,       grad_y, grad_log_det, parameters[0], parameters[1], parameters[2],
            out, log_det, grad_x, grads[0],     grads[1],      grads[2],      n};
  // the y of half types is rounded, and not where the derivatives are wanted
  if (!a.y || !std::is_same<S, T>::value) f.y = nullptr;
  if (!a.backward()) f.grad_x = nullptr;
  const S* const from[3] = {a.logits, a.means, a.log_scales};
  S* const to[3] = {a.grad_logits, a.grad_means, a.grad_log_scales};
  const int64_t at_once = kLanes / z.repeats;
  for (; i < end; i += at_once) {
    const int64_t count = end - i < at_once ? end - i : at_once;
    const int lanes = static_cast<int>(count * z.repeats);
    int64_t at[kLanes], *next_at = at;
    for (int64_t row = i; row < i + count; ++row)
      for_runs(z, row, 0, static_cast<int>(z.repeats), [&](int, int64_t first, int length) {
        for (int v = 0; v < length; ++v) *next_at++ = first + v;
      });
    for (int lane = 0; lane < lanes; ++lane) x[lane] = to_real(a.x[at[lane]]);
    for (int q = 0; q < 3; ++q) copy_in(parameters[q], from[q] + i * z.stride, z.stride, n, count, z.repeats);
    if (a.backward()) {
      for (int lane = 0; lane < lanes; ++lane) {
        if (f.y) y[lane] = to_real(a.y[at[lane]]);
        grad_y[lane] = to_real(a.grad_y[at[lane]]);
        grad_log_det[lane] = a.grad_log_det[at[lane]];
      }
    }
    block<kNormal>(f, columns, o);
    if (a.backward()) {
      for (int lane = 0; lane < lanes; ++lane) a.grad_x[at[lane]] = from_real<S>(grad_x[lane]);
      for (int q = 0; q < 3; ++q) copy_out(to[q] + i * z.stride, z.stride, grads[q], n, count, z.repeats);
    } else {
      for (int lane = 0; lane < lanes; ++lane) {
        a.out[at[lane]] = from_real<S>(out[lane]);
        a.log_det[at[lane]] = log_det[lane];
      }
    }
  }
}

// --- many numbers a row ---

// Numbers of one row, side by side.
template <class T>
struct Tile {
  alignas(64) T x[kTile], y[kTile], grad_y[kTile], grad_log_det[kTile];
  alignas(64) T out[kTile], log_det[kTile];  // in the backward the first holds the gradient of x
};

// Adds the gradients of a tile to `sums`; those of numbers past `count` are zeros.
template <bool kNormal, class P, class T>
GF_NOINLINE void tile_backward(Tile<T>* f, bool has_y, int count, const Columns<P>& c, const MixtureOptions& o,
                               P* gradients, double* sums) {
  for (int k = 0; k < 3 * c.count; ++k) gradients[k] = P(0);
  for (int i = 0; i < count; i += P::size) {
    Rows<T> rows{};
    rows.x = f->x + i, rows.y = has_y ? f->y + i : nullptr;
    rows.grad_y = f->grad_y + i, rows.grad_log_det = f->grad_log_det + i, rows.grad_x = f->out + i;
    pull_numbers<kNormal>(rows, c, o, [&](int k, const MixtureGradient<P>& g) {
      const int left = count - i;
      gradients[k] += keep_first(g.logit, left, T(0));
      gradients[c.count + k] += keep_first(g.mean, left, T(0));
      gradients[2 * c.count + k] += keep_first(g.log_scale, left, T(0));
    });
  }
  for (int k = 0; k < 3 * c.count; ++k) sums[k] += sum(gradients[k]);
}

// Numbers begin ... end of a row.
template <bool kNormal, class S, class P>
void one_row(const MixtureArrays<S>& a, const MixtureSizes& z, const MixtureOptions& o, int64_t row, int64_t begin,
             int64_t end, Columns<P>* columns, P* gradients, double* sums) {
  using T = compute_t<S>;
  const S* const from[3] = {a.logits, a.means, a.log_scales};
  P* const to[3] = {columns->logit, columns->mean, columns->log_scale};
  for (int q = 0; q < 3; ++q)
    for (int k = 0; k < columns->count; ++k) to[q][k] = P(to_real(from[q][row * z.stride + k]));
  columns->prepare();
  if (a.backward()) memset(sums, 0, 3 * z.components * sizeof(double));
  const bool has_y = a.y && std::is_same<S, T>::value;
  Tile<T> f;
  for (int64_t v = begin; v < end; v += kTile) {
    const int count = end - v < kTile ? static_cast<int>(end - v) : kTile;
    for_runs(z, row, v, count, [&](int at, int64_t i, int length) {
      for (int j = 0; j < length; ++j) f.x[at + j] = to_real(a.x[i + j]);
      if (!a.backward()) return;
      if (has_y)
        for (int j = 0; j < length; ++j) f.y[at + j] = to_real(a.y[i + j]);
      for (int j = 0; j < length; ++j) f.grad_y[at + j] = to_real(a.grad_y[i + j]);
      for (int j = 0; j < length; ++j) f.grad_log_det[at + j] = a.grad_log_det[i + j];
    });
    for (int i = count; i % P::size != 0; ++i) f.x[i] = f.x[0], f.y[i] = f.y[0], f.grad_y[i] = f.grad_log_det[i] = 0;
    if (a.backward()) {
      tile_backward<kNormal>(&f, has_y, count, *columns, o, gradients, sums);
    } else {
      for (int i = 0; i < count; i += P::size) {
        Rows<T> rows{};
        rows.x = f.x + i, rows.out = f.out + i, rows.log_det = f.log_det + i;
        map_numbers<kNormal>(rows, *columns, o);
      }
    }
    for_runs(z, row, v, count, [&](int at, int64_t i, int length) {
      S* out = (a.backward() ? a.grad_x : a.out) + i;
      for (int j = 0; j < length; ++j) out[j] = from_real<S>(f.out[at + j]);
      if (a.backward()) return;
      for (int j = 0; j < length; ++j) a.log_det[i + j] = f.log_det[at + j];
    });
  }
}

template <class S>
void store_sums(const MixtureArrays<S>& a, const MixtureSizes& z, int64_t row, const double* sums) {
  S* const to[3] = {a.grad_logits, a.grad_means, a.grad_log_scales};
  for (int q = 0; q < 3; ++q)
    for (int64_t k = 0; k < z.components; ++k)
      to[q][row * z.stride + k] = from_real<S>(static_cast<compute_t<S>>(sums[q * z.components + k]));
}

template <bool kNormal, class S>
void many_numbers(const MixtureArrays<S>& a, const MixtureSizes& z, const MixtureOptions& o, double* workspace) {
  using P = Native<compute_t<S>>;
  const SharedChunks chunks = shared_chunks(z);
  const int64_t size = 3 * z.components, longest = z.repeats < chunks.numbers ? z.repeats : chunks.numbers;
  parallel_for(chunks.count * z.all_rows, longest < kGrain ? kGrain / (longest + 16) + 1 : 1,
               [&](int64_t first, int64_t last) {
                 Scratch<P> memory(Columns<P>::numbers(z.components) + size);
                 Columns<P> columns(memory.get(), static_cast<int>(z.components));
                 P* gradients = memory.get() + Columns<P>::numbers(z.components);
                 Scratch<double> own(chunks.count == 1 ? size : 0);
                 for (int64_t unit = first; unit < last; ++unit) {
                   const int64_t row = unit % z.all_rows, begin = unit / z.all_rows * chunks.numbers;
                   const int64_t end = begin + chunks.numbers < z.repeats ? begin + chunks.numbers : z.repeats;
                   double* sums = chunks.count == 1 ? own.get() : workspace + unit * size;
                   one_row<kNormal>(a, z, o, row, begin, end, &columns, gradients, sums);
                   if (a.backward() && chunks.count == 1) store_sums(a, z, row, sums);
                 }
               });
  if (!a.backward() || chunks.count == 1) return;
  for (int64_t row = 0; row < z.all_rows; ++row) {
    double* sums = workspace + row * size;
    for (int64_t chunk = 1; chunk < chunks.count; ++chunk)
      for (int64_t q = 0; q < size; ++q) sums[q] += sums[chunk * z.all_rows * size + q];
    store_sums(a, z, row, sums);
  }
}

template <bool kNormal, class S>
void run(const MixtureArrays<S>& a, const MixtureSizes& z, const MixtureOptions& o, double* workspace) {
  if (z.repeats < 1 || z.repeats > Native<compute_t<S>>::size) return many_numbers<kNormal>(a, z, o, workspace);
  parallel_for(z.all_rows, (kGrain + z.repeats - 1) / z.repeats,
               [&](int64_t begin, int64_t end) { few_numbers<kNormal>(a, z, o, begin, end); });
}

template <class F>
void dispatch(const F& f, double* workspace) {
  dispatch_float(f.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    const MixtureArrays<S> a = mixture_arrays<S>(f);
    (f.options.normal ? run<true, S> : run<false, S>)(a, f.size, f.options, workspace);
  });
}

}  // namespace

void mixture_cdf_forward(const MixtureForward& f) { dispatch(f, nullptr); }
void mixture_cdf_backward(const MixtureBackward& f) { dispatch(f, f.workspace); }

}  // namespace GF_BACKEND
}  // namespace gf
