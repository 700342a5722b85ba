#include <stdexcept>
#include <string>

#include "common/kernel.h"
#include "ops/coupling/coupling.h"

namespace gf {

namespace {

template <class Args>
void describe_map(const Description<Args>& k) {
  k.scalar(GF(layout));
  k.scalar(GF(spec.map));
  k.scalar(GF(spec.clamp));
  k.scalar(GF(spec.offset));
  k.scalar(GF(spec.min_scale));
  k.scalar(GF(spec.gain));
  k.scalar(GF(spec.limit));
  k.scalar(GF(inverse));
}

template <class Args>
void check_map(const Args& a) {
  const int layout = static_cast<int>(a.layout), map = static_cast<int>(a.spec.map);
  if (layout < 0 || layout >= kCouplingLayouts)
    throw std::invalid_argument("layout: no layout " + std::to_string(layout));
  if (map < 0 || map >= kScaleMaps) throw std::invalid_argument("map: no scale map " + std::to_string(map));
}

// Shift and scale of `half` columns each, as parts of packed columns. Pointer is char of the constness of the operand.
template <class Pointer, class Operand>
void unpack(const Operand& packed, int64_t half, CouplingLayout layout, DType dtype, Operand* shift, Operand* scale) {
  const bool interleaved = layout == CouplingLayout::interleaved;
  *shift = *scale = {packed.data, packed.row, interleaved ? 2 * packed.col : packed.col};
  Operand* second = layout == CouplingLayout::chunked_scale_shift ? shift : scale;
  if (packed.data != nullptr)
    second->data = static_cast<Pointer>(packed.data) + (interleaved ? packed.col : half * packed.col) * size_of(dtype);
}

}  // namespace

GF_KERNEL(coupling_forward, CouplingForward) {
  k.size(GF(n)), k.size(GF(d));
  k.type(GF(dtype));
  k.tensor(GF(x), "n d");
  k.tensor(GF(shift), "n d").optional();
  k.tensor(GF(scale), "n d").optional();
  k.tensor(GF(params), "n 2d").optional();
  describe_map(k);
  k.tensor(GF(y), "n d");
  k.tensor(GF(log_det), "n").sum();
  k.prepare([](Args& a, Backend) {
    check_map(a);
    const bool packed = a.params.data != nullptr;
    if (a.n > 0 && a.d > 0 && (packed == (a.shift.data != nullptr) || packed == (a.scale.data != nullptr)))
      throw std::invalid_argument("coupling_forward: expected shift and scale, or params");
    if (packed) unpack<const char*>(a.params, a.d, a.layout, a.dtype, &a.shift, &a.scale);
  });
  k.work([](const Args& a) { return static_cast<double>(a.n * a.d); });
}

GF_KERNEL(coupling_backward, CouplingBackward) {
  k.size(GF(n)), k.size(GF(d));
  k.type(GF(dtype));
  k.tensor(GF(grad_y), "n d");
  k.tensor(GF(grad_log_det), "n").sum();
  k.tensor(GF(kept), "n d");
  k.tensor(GF(scale), "n d").optional();
  k.tensor(GF(params), "n 2d").optional();
  describe_map(k);
  k.tensor(GF(grad_x), "n d");
  k.tensor(GF(grad_shift), "n d").optional();
  k.tensor(GF(grad_scale), "n d").optional();
  k.tensor(GF(grad_params), "n 2d").optional();
  k.prepare([](Args& a, Backend) {
    check_map(a);
    const bool packed = a.params.data != nullptr;
    if (a.n > 0 && a.d > 0 &&
        (packed == (a.scale.data != nullptr) || packed == (a.grad_scale.data != nullptr) ||
         packed != (a.grad_params.data != nullptr) || (packed && a.grad_shift.data != nullptr)))
      throw std::invalid_argument("coupling_backward: expected scale and grad_scale, or params and grad_params");
    Strided unused{};
    if (packed) {
      unpack<const char*>(a.params, a.d, a.layout, a.dtype, &unused, &a.scale);
      unpack<char*>(a.grad_params, a.d, a.layout, a.dtype, &a.grad_shift, &a.grad_scale);
    }
  });
  k.work([](const Args& a) { return 1.5 * static_cast<double>(a.n * a.d); });
}

}  // namespace gf
