#include "common/chunks.h"
#include "common/kernel.h"
#include "ops/sylvester/sylvester.h"
#include "ops/sylvester/sylvester_sizes.h"

namespace gf {

GF_KERNEL(sylvester_forward, Sylvester) {
  k.size(GF(n)), k.size(GF(d)), k.size(GF(k)), k.size(GF(m));
  k.type(GF(dtype));
  k.tensor(GF(input), "n d");
  k.tensor(GF(q), "k d m");
  k.tensor(GF(r1), "k m m");
  k.tensor(GF(r2), "k m m");
  k.tensor(GF(b), "k m");
  k.scalar(GF(inverse));
  k.tensor(GF(output), "n d");
  k.tensor(GF(log_det), "n").sum();
  k.workspace(GF(workspace), DType::other,
              [](const Args& f, Backend b) { return on_gpu(b) ? sylvester_products(f) : 0; });
  k.work([](const Args& f) {
    return static_cast<double>(f.n * f.k * f.m) * (f.inverse ? 12 + 0.02 * (f.m + f.d) : 2 + 0.02 * f.d);
  });
}

GF_KERNEL(sylvester_backward, Sylvester) {
  k.size(GF(n)), k.size(GF(d)), k.size(GF(k)), k.size(GF(m));
  k.type(GF(dtype));
  k.tensor(GF(input), "n d");
  k.tensor(GF(q), "k d m");
  k.tensor(GF(r1), "k m m");
  k.tensor(GF(r2), "k m m");
  k.tensor(GF(b), "k m");
  k.tensor(GF(grad_output), "n d");
  k.tensor(GF(grad_log_det), "n").sum();
  k.scalar(GF(inverse));
  k.tensor(GF(grad_input), "n d");
  k.tensor(GF(grad_q), "k d m");
  k.tensor(GF(grad_r1), "k m m");
  k.tensor(GF(grad_r2), "k m m");
  k.tensor(GF(grad_b), "k m");
  k.workspace(GF(workspace), DType::other, [](const Args& f, Backend b) {
    if (!on_gpu(b)) return chunk_workspace(f.n, f.k * SylvesterSums(f).size());
    const int64_t numbers =
        sylvester_products(f) + sylvester_sums(f) + chunk_workspace(f.n, sylvester_sums(f) + SylvesterTile(f).kept(f));
    return (numbers + 3) / 4 * 4;  // whole packets: memory that is aligned at its end is so at its start
  });
  k.work([](const Args& f) {
    return static_cast<double>(f.n * f.k * f.m) * (f.inverse ? 16 + 0.08 * (f.m + f.d) : 4 + 0.08 * f.d);
  });
}

}  // namespace gf
