#include <stdexcept>

#include "common/kernel.h"
#include "ops/dbm/dbm.h"

namespace gf {

GF_KERNEL(dbm_gibbs, DbmGibbs) {
  k.size(GF(n)), k.size(GF(units));
  k.size(GF(n0)), k.size(GF(n1)), k.size(GF(n2)), k.size(GF(n3));
  k.size(GF(n4)), k.size(GF(n5)), k.size(GF(n6)), k.size(GF(n7));
  k.type(GF(state), kAnyDType);
  k.type(GF(weight), kWide);
  k.tensor(GF(states), "n units");
  k.tensor(GF(W0), "n0 n1").of("weight");
  k.tensor(GF(W1), "n1 n2").of("weight").optional();
  k.tensor(GF(W2), "n2 n3").of("weight").optional();
  k.tensor(GF(W3), "n3 n4").of("weight").optional();
  k.tensor(GF(W4), "n4 n5").of("weight").optional();
  k.tensor(GF(W5), "n5 n6").of("weight").optional();
  k.tensor(GF(W6), "n6 n7").of("weight").optional();
  k.tensor(GF(biases), "units").of("weight");
  k.tensor(GF(beta), "n").or_shape("1", GF(beta_per_chain));
  k.tensor(GF(clamp), "n units").or_shape("units", GF(clamp_per_chain)).optional();
  k.tensor(GF(seed), "");
  k.scalar(GF(n_steps));
  k.scalar(GF(first_chain));
  k.scalar(GF(first_step));
  k.scalar(GF(held));
  k.tensor(GF(out), "n units");
  k.tensor(GF(status), "1").returned();
  k.prepare([](Args& f, Backend) {
    int64_t units = 0;
    for (int l = 0; l < kDbmLayers; ++l) {
      units += f.layer_units(l);
      if (l > 0 && l + 1 < kDbmLayers && f.weights(l) && !f.weights(l - 1))
        throw std::invalid_argument("weights: expected a matrix between each layer and the next, got a gap");
    }
    if (units != f.units)
      throw std::invalid_argument("states: expected a number for each unit of all layers, " + std::to_string(units) +
                                  ", got " + std::to_string(f.units));
  });
  k.workspace(GF(workspace), DType::i32, [](const Args& f, Backend) { return DbmWorkspace(f).total; });
  k.work([](const Args& f) {
    double weights = 0;
    for (int l = 0; l + 1 < kDbmLayers; ++l) weights += static_cast<double>(f.layer_units(l) * f.layer_units(l + 1));
    const double n = static_cast<double>(f.n);
    return 2 * weights + static_cast<double>(f.n_steps) * n * (0.03 * weights + static_cast<double>(f.units));
  });
}

GF_KERNEL(dbm_mean_field, DbmMeanField) {
  k.size(GF(n)), k.size(GF(units));
  k.size(GF(n1)), k.size(GF(n2)), k.size(GF(n3)), k.size(GF(n4)), k.size(GF(n5)), k.size(GF(n6)), k.size(GF(n7));
  k.type(GF(dtype), kWide);
  k.tensor(GF(U1), "n1 n2").optional();
  k.tensor(GF(U2), "n2 n3").optional();
  k.tensor(GF(U3), "n3 n4").optional();
  k.tensor(GF(U4), "n4 n5").optional();
  k.tensor(GF(U5), "n5 n6").optional();
  k.tensor(GF(U6), "n6 n7").optional();
  k.scalar(GF(max_iterations));
  k.scalar(GF(tolerance));
  k.tensor(GF(fields), "n units");
  k.tensor(GF(means), "n units");
  k.tensor(GF(n_iterations), "n");
  k.prepare([](Args& f, Backend) {
    if (!f.U1) f.n1 = f.units;
    int64_t units = 0;
    for (int l = 0; l + 1 < kDbmLayers; ++l) {
      units += f.layer_units(l);
      if (l > 0 && l + 2 < kDbmLayers && f.weights(l) && !f.weights(l - 1))
        throw std::invalid_argument("weights: expected a matrix between each layer and the next, got a gap");
    }
    if (units != f.units)
      throw std::invalid_argument("fields: expected a number for each hidden unit, " + std::to_string(units) +
                                  ", got " + std::to_string(f.units));
  });
  k.workspace(GF(workspace), DType::other, [](const Args& f, Backend b) { return mean_field_workspace(f, on_gpu(b)); });
  k.work([](const Args& f) {
    double weights = 0;
    for (int l = 0; l + 2 < kDbmLayers; ++l) weights += static_cast<double>(f.layer_units(l) * f.layer_units(l + 1));
    return static_cast<double>(f.n) * (0.1 * weights + 10 * static_cast<double>(f.units));
  });
}

}  // namespace gf
