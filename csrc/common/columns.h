// Rows on the CPU with lanes that are rows: a block of kPacks registers' worth of rows is transposed into a buffer
// [d][pack] that stays in L1, or in registers for the smallest D.
#pragma once

#include "chunk_sums.h"
#include "real.h"
#include "rows.h"

namespace gf {
inline namespace GF_BACKEND {

// Independent chains of multiply-adds: enough to hide their latency, few enough for the registers.
constexpr int kPacks = kVectorBytes == 16 ? 2 : 4;

// at(d, p) is the p-th pack of rows of component d. kDim > 0 fixes D at compile time, and the optimiser keeps the whole
// block in registers.
template <class P, int kDim = 0>
struct Block {
  P values[kDim][kPacks];
  explicit Block(P*) {}
  GF_HD P& at(int64_t d, int p) { return values[d][p]; }
};
template <class P>
struct Block<P, 0> {
  P* values;
  explicit Block(P* memory) : values(memory) {}
  GF_HD P& at(int64_t d, int p) { return values[d * kPacks + p]; }
};

// `count` rows of `dim` numbers; where the block has more, they are zeros.
template <class P, class B, class T>
GF_HD void load_block(B& block, const T* rows, int64_t dim, int count) {
  for (int64_t d = 0; d < dim; ++d)
    for (int p = 0; p < kPacks; ++p)
      block.at(d, p) = load_strided<P>(rows + (p * P::size) * dim + d, dim, count - p * P::size);
}

template <class P, class B, class T>
GF_HD void store_block(B& block, T* rows, int64_t dim, int count) {
  for (int64_t d = 0; d < dim; ++d)
    for (int p = 0; p < kPacks; ++p)
      store_strided(rows + (p * P::size) * dim + d, dim, block.at(d, p), count - p * P::size);
}

// --- kPacks registers as one Real ---

template <class P>
struct Packs {
  P v[kPacks];

  Packs() = default;
  template <class U, std::enable_if_t<std::is_arithmetic<U>::value, int> = 0>
  GF_HD Packs(U x) {
    for (int p = 0; p < kPacks; ++p) v[p] = P(x);
  }
  GF_HD Packs& operator+=(const Packs& b) {
    for (int p = 0; p < kPacks; ++p) v[p] += b.v[p];
    return *this;
  }
};

template <class P>
struct PacksMask {
  decltype(P() < P()) v[kPacks];
};

template <class P>
struct ScalarOf<Packs<P>> {
  using type = scalar_t<P>;
};

#define GF_PACKS(Result, name, arguments, value)       \
  template <class P>                                   \
  GF_HD Result<P> name arguments {                     \
    Result<P> r;                                       \
    for (int p = 0; p < kPacks; ++p) r.v[p] = (value); \
    return r;                                          \
  }
#define GF_PACKS_1(name) GF_PACKS(Packs, name, (const Packs<P>& a), name(a.v[p]))
#define GF_PACKS_2(Result, op) GF_PACKS(Result, operator op, (const Packs<P>& a, const Packs<P>& b), a.v[p] op b.v[p])
#define GF_PACKS_MASK(op) \
  GF_PACKS(PacksMask, operator op, (const PacksMask<P>& a, const PacksMask<P>& b), a.v[p] op b.v[p])
GF_PACKS_2(Packs, +)
GF_PACKS_2(Packs, -)
GF_PACKS_2(Packs, *)
GF_PACKS_2(Packs, /)
GF_PACKS_2(PacksMask, <)
GF_PACKS_2(PacksMask, <=)
GF_PACKS_2(PacksMask, >)
GF_PACKS_2(PacksMask, >=)
GF_PACKS_2(PacksMask, ==)
GF_PACKS_MASK(&)
GF_PACKS_MASK(|)
GF_PACKS(Packs, operator-, (const Packs<P>& a), -a.v[p])
GF_PACKS_1(abs)
GF_PACKS_1(sqrt)
GF_PACKS_1(exp)
GF_PACKS_1(expm1)
GF_PACKS_1(log)
GF_PACKS_1(log1p)
GF_PACKS_1(tanh)
GF_PACKS(Packs, min, (const Packs<P>& a, const Packs<P>& b), min(a.v[p], b.v[p]))
GF_PACKS(Packs, max, (const Packs<P>& a, const Packs<P>& b), max(a.v[p], b.v[p]))
GF_PACKS(Packs, fma, (const Packs<P>& a, const Packs<P>& b, const Packs<P>& c), fma(a.v[p], b.v[p], c.v[p]))
GF_PACKS(Packs, select, (const PacksMask<P>& m, const Packs<P>& a, const Packs<P>& b), select(m.v[p], a.v[p], b.v[p]))
#undef GF_PACKS_MASK
#undef GF_PACKS_2
#undef GF_PACKS_1
#undef GF_PACKS

template <class P>
GF_HD bool any(const PacksMask<P>& m) {
  auto either = m.v[0];
  for (int p = 1; p < kPacks; ++p) either = either | m.v[p];
  return any(either);
}

// --- what an algorithm over rows is written with; GroupedRows of rows.cuh is the same on CUDA ---

// A block of rows of `d` numbers, row ... row + count - 1. `Real` is a number of each; a row's numbers are at z[0] ...
// z[d - 1]. Rows that the block has beyond `count` are zeros.
template <class T>
class ColumnRows {
 public:
  using Number = T;
  using Real = Packs<Native<T>>;
  static constexpr int64_t most = kPacks * Native<T>::size;

  ColumnRows(int64_t d, DType dtype) : d(d), dtype_(dtype), buffer_(is_half(dtype) ? most * d : 0) {}

  // f() for each block of the rows begin ... end - 1.
  template <class F>
  void for_each(int64_t begin, int64_t end, F&& f) {
    for (row_ = begin; row_ < end; row_ += most) {
      count_ = static_cast<int>(end - row_ < most ? end - row_ : most);
      f();
    }
  }
  // f(component, where it is) for what the thread has of its rows.
  template <class F>
  GF_HD void each(F&& f) const {
    for (int64_t c = 0; c < d; ++c) f(c, c);
  }
  int64_t numbers() const { return d; }
  // Number i of a parameter; `column` is less than d or, on CUDA, it may be beyond and gives 0.
  GF_HD T parameter(const void* p, int64_t i, int64_t = 0) const { return static_cast<const T*>(p)[i]; }
  // Of each row's share the sum over the row.
  GF_HD Real row_sum(const Real& x) const { return x; }
  // The first row of the block, and how many exist.
  int64_t row() const { return row_; }
  int count() const { return count_; }
  bool all_exist() const { return count_ == most; }
  // x for the rows that exist.
  GF_HD Real existing(Real x, T missing) const {
    for (int p = 0; p < kPacks; ++p) x.v[p] = keep_first(x.v[p], count_ - p * Native<T>::size, missing);
    return x;
  }
  // Adds x of all rows to a sum; of a row's numbers, or (`once`) what a row has once.
  GF_HD void add(T* to, const Real& x, int64_t = 0) const {
    Native<T> total(0);
    for (int p = 0; p < kPacks; ++p) total += x.v[p];
    *to += sum(total);
  }
  GF_HD void add_once(T* to, const Real& x) const { add(to, x); }

  void load(const void* p, Real* to) {
    const void* from = element(p, dtype_, row_ * d);
    if (is_half(dtype_)) gather(from, dtype_, count_ * d, buffer_.get()), from = buffer_.get();
    Block<Native<T>> block(to->v);
    load_block<Native<T>>(block, static_cast<const T*>(from), d, count_);
  }
  void store(void* p, Real* from) {
    void* to = element(p, dtype_, row_ * d);
    Block<Native<T>> block(from->v);
    store_block<Native<T>>(block, static_cast<T*>(is_half(dtype_) ? buffer_.get() : to), d, count_);
    if (is_half(dtype_)) scatter(buffer_.get(), count_ * d, to, dtype_);
  }
  // A number a row, of the compute type.
  GF_HD Real load_sum(const void* p) const {
    Real x;
    for (int i = 0; i < kPacks; ++i)
      x.v[i] =
          load_first<Native<T>>(static_cast<const T*>(p) + row_ + i * Native<T>::size, count_ - i * Native<T>::size);
    return x;
  }
  GF_HD void store_sum(void* p, const Real& x) const {
    for (int i = 0; i < kPacks; ++i)
      store_first(static_cast<T*>(p) + row_ + i * Native<T>::size, x.v[i], count_ - i * Native<T>::size);
  }

  const int64_t d;

 private:
  DType dtype_;
  Scratch<T> buffer_;
  int64_t row_ = 0;
  int count_ = 0;
};

}  // namespace GF_BACKEND
}  // namespace gf
