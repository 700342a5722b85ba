#include <stdexcept>

#include "common/chunks.h"
#include "common/kernel.h"
#include "ops/planar/planar.h"

namespace gf {

GF_KERNEL(planar_forward, PlanarForward) {
  k.size(GF(size.n)), k.size(GF(size.d)), k.size(GF(size.k));
  k.type(GF(dtype));
  k.tensor(GF(input), "n d");
  k.tensor(GF(w), "k d");
  k.tensor(GF(u), "k d");
  k.tensor(GF(b), "k");
  k.scalar(GF(inverse));
  k.tensor(GF(output), "n d");
  k.tensor(GF(log_det), "n").sum();
  k.tensor(GF(a), "k n").sum().optional();
  k.work([](const Args& f) { return static_cast<double>(f.size.n * f.size.k) * (2 + 0.1 * f.size.d); });
}

GF_KERNEL(planar_backward, PlanarBackward) {
  k.size(GF(size.n)), k.size(GF(size.d)), k.size(GF(size.k));
  k.type(GF(dtype));
  k.tensor(GF(input), "n d");
  k.tensor(GF(output), "n d").optional();
  k.tensor(GF(a), "k n").sum().optional();
  k.tensor(GF(w), "k d");
  k.tensor(GF(u), "k d");
  k.tensor(GF(b), "k");
  k.tensor(GF(grad_output), "n d");
  k.tensor(GF(grad_log_det), "n").sum();
  k.scalar(GF(inverse));
  k.tensor(GF(grad_input), "n d");
  k.tensor(GF(grad_w), "k d");
  k.tensor(GF(grad_u), "k d");
  k.tensor(GF(grad_b), "k");
  k.prepare([](Args& f, Backend) {
    if (f.size.n == 0 || f.size.k == 0) return;  // a tensor without elements is null too
    if (f.a == nullptr && f.inverse) throw std::invalid_argument("a: the adjoint of the inverse needs it, got None");
    if (f.a != nullptr && f.output == nullptr && f.size.d > 0)
      throw std::invalid_argument("output: needed together with a, got None");
  });
  k.workspace(GF(workspace), DType::other, [](const Args& f, Backend b) {
    return chunk_workspace(f.size.n, planar_sums(f.size)) +
           (on_gpu(b) && f.a == nullptr ? planar_recomputed(f.size) : 0);
  });
  k.work([](const Args& f) { return static_cast<double>(f.size.n * f.size.k) * (2 + 0.2 * f.size.d); });
}

}  // namespace gf
