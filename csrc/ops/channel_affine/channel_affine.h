// Affine maps of the channels of each pixel: the arguments of both kernels, and entry points of every backend.
#pragma once

#include <cstdint>

#include "common/backend.h"
#include "common/dtype.h"
#include "common/macros.h"
#include "common/stream.h"

namespace gf {

// The parts of the map (channel_affine_math.h); null where it has none. Shapes: channel_affine_args.cpp.
struct ChannelMap {
  int64_t n, c, h, w;
  DType dtype;
  bool channels_last;      // tensors are [n, h, w, c], not [n, c, h, w]
  bool inverse, softplus;  // how the diagonal is parametrised
  double min_diag;
  const void *lower, *upper, *diag, *sign;
  const int64_t* permutation;
  const void *log_scale, *shift, *bias;

  GF_HD int64_t image() const { return h * w; }
  GF_HD int64_t pixels() const { return n * h * w; }
};

struct ChannelForward {
  ChannelMap map;
  const void* input;
  void *output, *log_det;
  Stream stream;
};

struct ChannelBackward {
  ChannelMap map;
  const void *grad_output, *grad_log_det;
  const void* kept;  // the side of the map before scale and shift: the input of the forward, the output of the inverse
  void *grad_input, *grad_lower, *grad_upper, *grad_diag, *grad_log_scale, *grad_shift, *grad_bias;
  void* workspace;
  Stream stream;
};

// Where log-scales saturate, so that scales and their inverses are normal numbers of float32.
constexpr double kMaxLogScale = 80;

// The kernels' loops go over groups of this many channels; those past the last one are zeros.
constexpr int kChannelGroup = 4;
GF_HD int64_t padded_channels(int64_t c) { return (c + kChannelGroup - 1) / kChannelGroup * kChannelGroup; }

// Sums over pixels, one after another: of w and u [c, c], of the cotangents of bias, log_scale and shift, of log_det.
GF_HD int64_t channel_sums(const ChannelMap& f) { return (f.lower != nullptr ? f.c * f.c : 0) + 3 * f.c + 1; }

// How pixels are split where they are summed: a chunk's length depends on their number alone, and is a multiple of 64.
GF_HD int64_t pixels_per_chunk(int64_t pixels, bool gpu) {
  const int64_t most = gpu ? 512 : 64, least = gpu ? 128 : 512;
  const int64_t even = (pixels + most - 1) / most;
  return even <= least ? least : (even + 63) / 64 * 64;
}
GF_HD int64_t pixel_chunks(int64_t pixels, bool gpu) {
  const int64_t length = pixels_per_chunk(pixels, gpu);
  return pixels <= 0 ? 1 : (pixels + length - 1) / length;
}

}  // namespace gf

GF_DECLARE_BACKENDS(void channel_affine_forward(const ChannelForward&);
                    void channel_affine_backward(const ChannelBackward&))
