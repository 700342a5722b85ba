// Kernels that use each built-in of csrc/common/{device,launch,reduce}.cuh once, with the answer known beforehand.
// tests/test_simt.py builds this file twice: for the host (GF_SIMT), and with nvcc where there is one. Run as
// `test_simt <case>`; prints one line "case: ok", or what was wrong, or the error of a case that must fail.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/launch.cuh"
#include "common/mma.cuh"
#include "common/reduce.cuh"

namespace {

// An array on the host and, under CUDA, its twin on the device: get() uploads, [] downloads what kernels wrote.
template <class T>
class Buffer {
 public:
  explicit Buffer(std::size_t n, T value = T{}) : host_(n, value) {
#if !defined(GF_SIMT)
    check(cudaMalloc(&device_, n * sizeof(T)));
#endif
  }
#if defined(GF_SIMT)
  T* get() { return host_.data(); }
  T& operator[](std::size_t i) { return host_[i]; }
#else
  ~Buffer() { cudaFree(device_); }
  T* get() {
    if (!on_device_) check(cudaMemcpy(device_, host_.data(), host_.size() * sizeof(T), cudaMemcpyHostToDevice));
    on_device_ = true;
    return device_;
  }
  T& operator[](std::size_t i) {
    if (on_device_) check(cudaMemcpy(host_.data(), device_, host_.size() * sizeof(T), cudaMemcpyDeviceToHost));
    on_device_ = false;
    return host_[i];
  }
#endif
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* data() { return &(*this)[0]; }

 private:
  std::vector<T> host_;
#if !defined(GF_SIMT)
  static void check(cudaError_t error) {
    if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
  }
  T* device_ = nullptr;
  bool on_device_ = false;
#endif
};

template <class... Params, class... Args>
void run(const char* name, void (*kernel)(Params...), dim3 grid, dim3 block, std::size_t shared, Args... args) {
  gf::launch(name, kernel, grid, block, shared, gf::Stream{nullptr, 0}, args...);
#if !defined(GF_SIMT)
  const cudaError_t error = cudaDeviceSynchronize();
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
#endif
}

void expect(bool condition, const std::string& text) {
  if (!condition) throw std::logic_error(text);
}

void expect_near(double got, double wanted, double tolerance, const std::string& text) {
  expect(std::abs(got - wanted) <= tolerance,
         text + ": got " + std::to_string(got) + ", wanted " + std::to_string(wanted));
}

// --- indices ---

__global__ void index_kernel(int* out, long long n) {
  for (std::int64_t i = gf::grid_thread(); i < n; i += gf::grid_threads()) out[i] += static_cast<int>(i % 1000) + 1;
}

__global__ void index3_kernel(int* out) {
  const int block = static_cast<int>(blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z));
  out[block * gf::block_threads() + gf::block_thread()] = gf::lane_index() + 100 * gf::warp_index();
}

void test_indices() {
  constexpr int kN = 10007;
  Buffer<int> out(kN);
  run("index", index_kernel, 3, 96, 0, out.get(), static_cast<long long>(kN));
  for (int i = 0; i < kN; ++i) expect(out[i] == i % 1000 + 1, "element " + std::to_string(i));
  Buffer<int> out3(2 * 3 * 2 * 96);
  run("index3", index3_kernel, dim3(2, 3, 2), dim3(8, 6, 2), 0, out3.get());
  for (int i = 0; i < 2 * 3 * 2 * 96; ++i) expect(out3[i] == i % 96 % 32 + 100 * (i % 96 / 32), "index of 3-D block");
  expect(gf::blocks_for(0, 128) == 0 && gf::blocks_for(1, 128) == 1 && gf::blocks_for(129, 128) == 2, "blocks_for");
  expect(gf::blocks_for(std::int64_t{1} << 40, 128) == gf::kMaxBlocks, "blocks_for is capped");
  run("empty", index_kernel, 0, 128, 0, out.get(), 0LL);
}

// --- shared memory and barriers ---

__global__ void transpose_kernel(const float* in, float* out) {
  GF_SHARED(float, tile, [32][33]);
  GF_SHARED(int, rows, );
  if (gf::block_thread() == 0) rows = 32;
  for (int y = threadIdx.y; y < 32; y += blockDim.y) tile[y][threadIdx.x] = in[y * 32 + threadIdx.x];
  __syncthreads();
  for (int y = threadIdx.y; y < rows; y += blockDim.y) out[y * 32 + threadIdx.x] = tile[threadIdx.x][y];
}

template <class T>
__global__ void reverse_kernel(T* data, int n) {
  T* buffer = gf::dynamic_shared<T>();
  for (int i = threadIdx.x; i < n; i += blockDim.x) buffer[i] = data[blockIdx.x * n + i];
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += blockDim.x) data[blockIdx.x * n + i] = buffer[n - 1 - i];
}

__global__ void vote_kernel(int* out) {
  const int t = static_cast<int>(threadIdx.x);
  if (t >= 90) return;  // exited threads do not count at a barrier
  out[t] = __syncthreads_count(t % 3 == 0);
  out[90 + t] = __syncthreads_or(t == 77) + 2 * __syncthreads_or(0);
  out[180 + t] = __syncthreads_and(1) + 2 * __syncthreads_and(t != 5);
}

void test_shared() {
  Buffer<float> in(1024);
  Buffer<float> out(1024);
  for (int i = 0; i < 1024; ++i) in[i] = static_cast<float>(i);
  run("transpose", transpose_kernel, 1, dim3(32, 4), 0, in.get(), out.get());
  for (int i = 0; i < 1024; ++i) expect(out[i] == in[i % 32 * 32 + i / 32], "transpose");
  constexpr int kN = 20000;  // 80,000 bytes: beyond the 48 KB that need no asking
  Buffer<float> data(3 * kN);
  for (int i = 0; i < 3 * kN; ++i) data[i] = static_cast<float>(i);
  run("reverse", reverse_kernel<float>, 3, 128, kN * sizeof(float), data.get(), kN);
  for (int i = 0; i < 3 * kN; ++i) expect(data[i] == static_cast<float>(i / kN * kN + kN - 1 - i % kN), "reverse");
  Buffer<int> votes(270);
  run("vote", vote_kernel, 1, 96, 0, votes.get());
  for (int t = 0; t < 90; ++t) {
    expect(votes[t] == 30, "__syncthreads_count");
    expect(votes[90 + t] == 1, "__syncthreads_or");
    expect(votes[180 + t] == 1, "__syncthreads_and");
  }
}

// --- warps ---

__global__ void shuffle_kernel(int* out) {
  const int lane = gf::lane_index();
  int* row = out + lane;
  row[0] = __shfl_sync(0xffffffffu, lane * 10, 7);
  row[32] = __shfl_sync(0xffffffffu, lane, lane + 3, 8);
  row[64] = __shfl_up_sync(0xffffffffu, lane, 2);
  row[96] = __shfl_up_sync(0xffffffffu, lane, 1, 16);
  row[128] = __shfl_down_sync(0xffffffffu, lane, 5);
  row[160] = __shfl_down_sync(0xffffffffu, lane, 3, 4);
  row[192] = __shfl_xor_sync(0xffffffffu, lane, 21);
  row[224] = static_cast<int>(__shfl_xor_sync(0xffffffffu, 1e10 + lane, 1) - 1e10);
  // Two halves, each by itself.
  row[256] = lane < 16 ? __shfl_xor_sync(0x0000ffffu, lane, 1) : -__shfl_xor_sync(0xffff0000u, lane, 2);
}

__global__ void ballot_kernel(unsigned* out) {
  const int lane = gf::lane_index();
  out[lane] = __ballot_sync(0xffffffffu, lane % 3 == 0);
  out[32 + lane] = static_cast<unsigned>(__any_sync(0xffffffffu, lane == 9) + 2 * __any_sync(0xffffffffu, 0));
  out[64 + lane] = static_cast<unsigned>(__all_sync(0xffffffffu, 1) + 2 * __all_sync(0xffffffffu, lane != 31));
}

// Neighbours through shared memory, with nothing but __syncwarp between writing and reading.
__global__ void syncwarp_kernel(int* out, int rounds) {
  GF_SHARED(int, box, [128]);
  const int t = gf::block_thread();
  const int warp = t / 32 * 32;
  int value = t;
  for (int r = 0; r < rounds; ++r) {
    box[t] = value;
    __syncwarp();
    value = box[warp + (t + 1) % 32] + 1;
    __syncwarp();
  }
  out[t] = value;
}

void test_warp() {
  Buffer<int> out(288);
  run("shuffle", shuffle_kernel, 1, 32, 0, out.get());
  for (int lane = 0; lane < 32; ++lane) {
    const int wanted[] = {70,
                          lane / 8 * 8 + (lane + 3) % 8,
                          lane < 2 ? lane : lane - 2,
                          lane % 16 == 0 ? lane : lane - 1,
                          lane + 5 > 31 ? lane : lane + 5,
                          lane % 4 + 3 > 3 ? lane : lane + 3,
                          lane ^ 21,
                          lane ^ 1,
                          lane < 16 ? lane ^ 1 : -(lane ^ 2)};
    for (int i = 0; i < 9; ++i) {
      expect(out[32 * i + lane] == wanted[i], "shuffle " + std::to_string(i) + " lane " + std::to_string(lane));
    }
  }
  Buffer<unsigned> votes(96);
  run("ballot", ballot_kernel, 1, 32, 0, votes.get());
  for (int lane = 0; lane < 32; ++lane) {
    expect(votes[lane] == 0x49249249u, "__ballot_sync");
    expect(votes[32 + lane] == 1u, "__any_sync");
    expect(votes[64 + lane] == 1u, "__all_sync");
  }
  Buffer<int> ring(128);
  run("syncwarp", syncwarp_kernel, 1, 128, 0, ring.get(), 5);
  for (int t = 0; t < 128; ++t) expect(ring[t] == t / 32 * 32 + (t + 5) % 32 + 5, "__syncwarp");
}

// --- reductions ---

template <class T>
__global__ void reduce_kernel(const T* in, T* out) {
  const T x = in[blockIdx.x * blockDim.x + threadIdx.x];
  T* row = out + (blockIdx.x * blockDim.x + threadIdx.x) * 5;
  row[0] = gf::block_sum(x);
  row[1] = gf::block_max(x);
  T v[2] = {x, x * x};
  gf::block_sum(v);
  row[2] = v[0];
  row[3] = v[1];
  row[4] = gf::warp_sum<8>(x);
}

template <class T>
void check_reduce(int block) {
  Buffer<T> in(static_cast<std::size_t>(2 * block));
  Buffer<T> out(static_cast<std::size_t>(10 * block));
  for (int i = 0; i < 2 * block; ++i) in[i] = static_cast<T>((i * 37) % 101 - 50) / 64;  // sums are exact
  run("reduce", reduce_kernel<T>, 2, block, 0, in.get(), out.get());
  for (int i = 0; i < 2 * block; ++i) {
    T sum = 0, squares = 0, max = -1000, sum8 = 0;
    for (int j = i / block * block; j < i / block * block + block; ++j) {
      sum += in[j];
      squares += in[j] * in[j];
      max = std::fmax(max, in[j]);
    }
    for (int j = i / 8 * 8; j < i / 8 * 8 + 8; ++j) sum8 += in[j];
    const T wanted[] = {sum, max, sum, squares, sum8};
    for (int k = 0; k < 5; ++k) expect_near(out[5 * i + k], wanted[k], 0, "reduction " + std::to_string(k));
  }
  in[3] = static_cast<T>(NAN);
  run("reduce", reduce_kernel<T>, 2, block, 0, in.get(), out.get());
  expect(std::isnan(out[0]) && std::isnan(out[1]), "a NaN in the block comes out");
  expect(!std::isnan(out[5 * block]) && !std::isnan(out[5 * block + 1]), "and only in its block");
}

void test_reduce() {
  for (const int block : {32, 64, 96, 256, 1024}) {
    check_reduce<float>(block);
    check_reduce<double>(block);
  }
}

// --- atomics ---

__global__ void atomic_kernel(int* i, unsigned* u, float* f, double* d, unsigned long long* l) {
  const int t = static_cast<int>(gf::grid_thread());
  atomicAdd(&i[0], t);
  atomicMax(&i[1], t % 57);
  atomicMin(&i[2], -t);
  atomicOr(&u[0], 1u << (t % 20));
  atomicXor(&u[1], static_cast<unsigned>(t));
  atomicAnd(&u[2], ~(1u << (t % 5)));
  atomicInc(&u[3], 6);
  atomicAdd(&f[0], 0.5f);
  atomicAdd(&d[0], 0.25);
  atomicAdd(&l[0], 1ULL << 33);
  if (atomicCAS(&i[3], 0, t + 1) == 0) atomicAdd(&i[4], 1);
  atomicExch(&i[5], 11);
}

void test_atomics() {
  Buffer<int> i(6);
  Buffer<unsigned> u(4);
  Buffer<float> f(1);
  Buffer<double> d(1);
  Buffer<unsigned long long> l(1);
  u[2] = 0xffu;
  run("atomic", atomic_kernel, 4, 64, 0, i.get(), u.get(), f.get(), d.get(), l.get());
  expect(i[0] == 255 * 128 && i[1] == 56 && i[2] == -255 && i[3] > 0 && i[4] == 1 && i[5] == 11, "int atomics");
  expect(u[0] == 0xfffffu && u[1] == 0u && u[2] == 0xe0u && u[3] == 256 % 7, "unsigned atomics");
  expect(f[0] == 128.0f && d[0] == 64.0 && l[0] == 256ULL << 33, "float and 64-bit atomics");
}

// --- tensor cores ---

// D [16, 8] = A [16, 32 bytes] B [8, 32 bytes]^T + 1 with the registers filled as mma.cuh says; A by load_matrix_x4.
__global__ void mma_kernel(const unsigned* a, const unsigned* b, int* d) {
  GF_SHARED(uint4, tile, [16][2]);
  const int lane = gf::lane_index();
  unsigned* words = &tile[0][0].x;
  for (int i = lane; i < 128; i += 32) words[i] = a[i];
  __syncwarp();
  unsigned left[4];
  gf::load_matrix_x4(left, &tile[lane % 8 + lane / 8 % 2 * 8][lane / 16]);
  const unsigned right[2] = {b[lane / 4 * 8 + lane % 4], b[lane / 4 * 8 + 4 + lane % 4]};
  int sum[4] = {1, 1, 1, 1};
  gf::mma_m16n8k32_s8(sum, left, right);
  for (int r = 0; r < 4; ++r) d[(lane / 4 + r / 2 * 8) * 8 + lane % 4 * 2 + r % 2] = sum[r];
}

void test_mma() {
  Buffer<unsigned> a(128);
  Buffer<unsigned> b(64);
  Buffer<int> d(128);
  for (int i = 0; i < 512; ++i) reinterpret_cast<std::int8_t*>(a.data())[i] = static_cast<std::int8_t>(i * 91 + i / 32);
  for (int i = 0; i < 256; ++i) reinterpret_cast<std::int8_t*>(b.data())[i] = static_cast<std::int8_t>(i * 57 - i / 32);
  run("mma_s8", mma_kernel, 1, 32, 0, a.get(), b.get(), d.get());
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 8; ++n) {
      int wanted = 1;
      for (int k = 0; k < 32; ++k) {
        wanted +=
            reinterpret_cast<std::int8_t*>(a.data())[32 * m + k] * reinterpret_cast<std::int8_t*>(b.data())[32 * n + k];
      }
      expect(d[8 * m + n] == wanted, "int8 product " + std::to_string(m) + ", " + std::to_string(n));
    }
  }
}

// --- arithmetic ---

__constant__ float kThird = 1.0f / 3.0f;

__global__ void __launch_bounds__(32) intrinsic_kernel(unsigned* u, int* i, float* f, double* d) {
  u[0] = __umulhi(0x80000001u, 6u);
  u[1] = __brev(0x00000003u);
  u[2] = __funnelshift_l(0x80000000u, 1u, 4);
  u[3] = __funnelshift_r(0x80000000u, 1u, 4);
  u[4] = __byte_perm(0x33221100u, 0x77665544u, 0x7250u);
  u[5] = __float_as_uint(1.0f);
  u[6] = __dp4a(0x01020304u, 0x05060708u, 100u);
  u[7] = static_cast<unsigned>(__umul64hi(1ULL << 63, 6ULL));
  i[0] = __popc(0xf0f0u) + 100 * __popcll(~0ULL);
  i[1] = __ffs(0x40) + 100 * __ffsll(1LL << 40) + 10000 * __ffs(0);
  i[2] = __clz(1) + 100 * __clzll(1) + 10000 * __clz(0);
  i[3] = __mulhi(-5, 0x40000000);
  i[4] = __float2int_rn(2.5f) + 10 * __float2int_rz(-3.7f) + 100 * __float2int_rd(-0.5f) + 1000 * __float2int_ru(0.5f);
  i[5] = __float2int_rn(1e20f);
  i[6] = __dp4a(static_cast<int>(0xff020304u), 0x01010101, -1);
  i[7] = min(3, 4) + 10 * max(3, 4);
  f[0] = __fadd_rn(__fmul_rn(kThird, 3.0f), -1.0f);
  f[1] = __fdiv_rn(1.0f, 3.0f);
  f[2] = __fsqrt_rn(2.0f);
  f[3] = rsqrtf(4.0f);
  f[4] = __expf(1.0f);
  f[5] = fminf(1.0f, NAN) + max(2.0f, 3.0f);
  f[6] = __int_as_float(0x40490fdb);
  f[7] = __saturatef(1.5f) + __saturatef(-1.0f) + __saturatef(0.25f);
  const float4 v = make_float4(1.0f, 2.0f, 3.0f, 4.0f);
  f[8] = __ldg(&f[1]) + v.x + v.y * v.z - v.w + make_float2(0.5f, 0.25f).y;
  f[9] = sinpif(2.5f) + cospif(3.0f);
  d[0] = __dmul_rn(1.0 / 3.0, 3.0);
  d[1] = rsqrt(16.0);
  d[2] = __longlong_as_double(__double_as_longlong(2.5));
}

void test_intrinsics() {
  Buffer<unsigned> u(8);
  Buffer<int> i(8);
  Buffer<float> f(10);
  Buffer<double> d(3);
  run("intrinsic", intrinsic_kernel, 1, 1, 0, u.get(), i.get(), f.get(), d.get());
  const unsigned u_wanted[] = {3u, 0xc0000000u, 0x18u, 0x18000000u, 0x77225500u, 0x3f800000u, 170u, 3u};
  const int i_wanted[] = {6408, 4107, 326331, -2, 1000 - 100 - 30 + 2, 2147483647, -1 + 2 + 3 + 4 - 1, 43};
  for (int k = 0; k < 8; ++k) {
    expect(u[k] == u_wanted[k], "unsigned intrinsic " + std::to_string(k) + ": " + std::to_string(u[k]));
    expect(i[k] == i_wanted[k], "int intrinsic " + std::to_string(k) + ": " + std::to_string(i[k]));
  }
  const double f_wanted[] = {
      0.0, 1.0 / 3.0, std::sqrt(2.0), 0.5, std::exp(1.0), 4.0, 3.14159265358979, 1.25, 1.0 / 3.0 + 3.25, 0.0};
  for (int k = 0; k < 10; ++k) expect_near(f[k], f_wanted[k], 1e-6, "float intrinsic " + std::to_string(k));
  expect(d[0] == 1.0 && d[1] == 0.25 && d[2] == 2.5, "double intrinsics");
}

#if defined(GF_SIMT)

// --- what the emulation must find ---

__global__ void skipped_barrier_kernel(int* out) {
  if (threadIdx.x == 3) return;
  if (threadIdx.x == 5) {
    __shfl_xor_sync(0xffffffffu, 1, 1);
  } else {
    __syncthreads();
  }
  out[0] = 1;
}

__global__ void divergent_barrier_kernel(int* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[0] = 1;
}

__global__ void outside_lane_kernel(int* out) { out[threadIdx.x] = __shfl_down_sync(0xffffffffu, 1, 16); }

__global__ void foreign_mask_kernel(int* out) { out[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, 1, 1); }

__global__ void mixed_collective_kernel(int* out) {
  out[threadIdx.x] = threadIdx.x % 2 == 0 ? __any_sync(0xffffffffu, 1) : __all_sync(0xffffffffu, 1);
}

__global__ void overrun_kernel(int n) { gf::dynamic_shared<int>()[n] = 1; }

// Reads its neighbour's value without a barrier: what comes out depends on the order of the threads.
__global__ void race_kernel(int* out) {
  GF_SHARED(int, box, [64]);
  box[threadIdx.x] = static_cast<int>(threadIdx.x);
  out[threadIdx.x] = box[(threadIdx.x + 1) % 64];
  __syncthreads();
  out[64 + threadIdx.x] = box[(threadIdx.x + 1) % 64];
}

// Shared memory that nobody wrote.
__global__ void uninitialised_kernel(float* out) {
  GF_SHARED(float, total, );
  if (out == nullptr) total = 0;
  out[blockIdx.x] = total + gf::dynamic_shared<float>()[0];
  __syncthreads();
  if (threadIdx.x == 0) total = 1;
}

void fail_deadlock() {
  Buffer<int> out(1);
  run("skipped_barrier", skipped_barrier_kernel, 2, 64, 0, out.get());
}
void fail_divergent() {
  Buffer<int> out(1);
  run("divergent_barrier", divergent_barrier_kernel, 1, 64, 0, out.get());
}
void fail_lane() {
  Buffer<int> out(48);
  run("outside_lane", outside_lane_kernel, 1, 48, 0, out.get());
}
void fail_mask() {
  Buffer<int> out(32);
  run("foreign_mask", foreign_mask_kernel, 1, 32, 0, out.get());
}
void fail_mixed() {
  Buffer<int> out(32);
  run("mixed_collective", mixed_collective_kernel, 1, 32, 0, out.get());
}
void fail_overrun() { run("overrun", overrun_kernel, 1, 1, 64, 16); }

void test_race() {
  Buffer<int> out(128);
  run("race", race_kernel, 1, 64, 0, out.get());
  int wrong = 0;
  for (int t = 0; t < 64; ++t) {
    wrong += out[t] != (t + 1) % 64;
    expect(out[64 + t] == (t + 1) % 64, "behind the barrier");
  }
  std::printf("%d of 64 read before the write\n", wrong);
}

void test_uninitialised() {
  Buffer<float> out(3);
  run("uninitialised", uninitialised_kernel, 3, 32, 16, out.get());
  for (int b = 0; b < 3; ++b) expect(std::isnan(out[b]), "shared memory starts as NaN in every block");
}

// A failed launch leaves nothing behind.
void test_recovery() {
  for (int i = 0; i < 20; ++i) {
    bool failed = false;
    try {
      fail_deadlock();
    } catch (const std::runtime_error&) {
      failed = true;
    }
    expect(failed, "the deadlock is found each time");
    test_shared();
    test_reduce();
  }
}

#endif

// Threads beyond what a block may have; where there is no device, that is what is reported.
void fail_launch() { run("index", index_kernel, 1, 1025, 4096, static_cast<int*>(nullptr), 0LL); }

struct Case {
  const char* name;
  void (*body)();
};

constexpr Case kCases[] = {
    {"indices", test_indices},
    {"shared", test_shared},
    {"warp", test_warp},
    {"reduce", test_reduce},
    {"atomics", test_atomics},
    {"mma", test_mma},
    {"intrinsics", test_intrinsics},
    {"fail_launch", fail_launch},
#if defined(GF_SIMT)
    {"recovery", test_recovery},
    {"race", test_race},
    {"uninitialised", test_uninitialised},
    {"fail_deadlock", fail_deadlock},
    {"fail_divergent", fail_divergent},
    {"fail_lane", fail_lane},
    {"fail_mask", fail_mask},
    {"fail_mixed", fail_mixed},
    {"fail_overrun", fail_overrun},
#endif
};

}  // namespace

int main(int argc, char** argv) {
  for (const Case& c : kCases) {
    if (argc < 2 || std::strcmp(argv[1], c.name) != 0) continue;
    try {
      c.body();
    } catch (const std::exception& e) {
      std::printf("%s: %s\n", c.name, e.what());
      return 1;
    }
    std::printf("%s: ok\n", c.name);
    return 0;
  }
  std::printf("usage: test_simt CASE\n");
  return 2;
}
