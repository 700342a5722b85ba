// Tensor-core products of one warp, and the load that brings shared memory into their layout. All 32 lanes call.
//
// With g = lane / 4 and t = lane % 4, D [16, 8] += A [16, K] B [K, 8] is spread over the lanes as
//   d[0], d[1] = D[g][2t], D[g][2t+1]          d[2], d[3] = D[g+8][2t], D[g+8][2t+1]
// and, E elements of A or B packed in each 32-bit register, lowest first (int8: E = 4, K = 32; bf16: E = 2, K = 16):
//   a[0] = A[g][E t ...]      a[1] = A[g+8][E t ...]      a[2] = A[g][4E + E t ...]   a[3] = A[g+8][4E + E t ...]
//   b[0] = B[E t ...][g]      b[1] = B[4E + E t ...][g]
// so with B stored by columns ([8, K], a row for each output), both operands load 4 adjacent bytes at a time.
//
// int8 sums are exact (mod 2^32). bf16 products are exact and summed in float32 in an order of the hardware's choice.
// Before Ampere (sm_75) int8 goes through the smaller tensor-core shape and bf16 through shuffles.
#pragma once

#include <cstdint>

#include "device.cuh"

namespace gf {
inline namespace GF_BACKEND {

namespace mma_detail {

__device__ __forceinline__ float bf16_low(unsigned pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float bf16_high(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }

// The bf16 product without tensor cores.
__device__ inline void bf16_by_shuffles(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  const int lane = lane_index();
  const int group = lane / 4;
  const int column = 2 * (lane % 4);
  for (int half = 0; half < 2; ++half) {
    for (int t = 0; t < 4; ++t) {
      const unsigned upper = __shfl_sync(0xffffffffu, a[2 * half], 4 * group + t);
      const unsigned lower = __shfl_sync(0xffffffffu, a[2 * half + 1], 4 * group + t);
      const unsigned left = __shfl_sync(0xffffffffu, b[half], 4 * column + t);
      const unsigned right = __shfl_sync(0xffffffffu, b[half], 4 * column + 4 + t);
      d[0] += bf16_low(upper) * bf16_low(left) + bf16_high(upper) * bf16_high(left);
      d[1] += bf16_low(upper) * bf16_low(right) + bf16_high(upper) * bf16_high(right);
      d[2] += bf16_low(lower) * bf16_low(left) + bf16_high(lower) * bf16_high(left);
      d[3] += bf16_low(lower) * bf16_low(right) + bf16_high(lower) * bf16_high(right);
    }
  }
}

#if defined(GF_SIMT)

// Reads the whole operands back from the lanes' registers and multiplies them the plain way.
template <class Element, class Sum, class Acc, int K>
void multiply(const char* what, Acc (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
              Element (*element)(unsigned reg, int index)) {
  struct Lane {
    Acc* d;
    const unsigned* a;
    const unsigned* b;
    Element (*element)(unsigned, int);
  } own{d, a, b, element};
  const auto combine = [](void* const* payloads) {
    constexpr int kPerRegister = K / 8;
    Element left[16][K];
    Element right[K][8];
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const Lane* l = static_cast<const Lane*>(payloads[lane]);
      if (l == nullptr) ::gf::emu::fail("mma: lane %d does not take part", lane);
      for (int i = 0; i < kPerRegister; ++i) {
        const int k = lane % 4 * kPerRegister + i;
        for (int r = 0; r < 4; ++r) left[lane / 4 + 8 * (r % 2)][k + K / 2 * (r / 2)] = l->element(l->a[r], i);
        for (int r = 0; r < 2; ++r) right[k + K / 2 * r][lane / 4] = l->element(l->b[r], i);
      }
    }
    for (int lane = 0; lane < kWarpSize; ++lane) {
      for (int r = 0; r < 4; ++r) {
        Acc& out = static_cast<Lane*>(payloads[lane])->d[r];
        Sum sum = static_cast<Sum>(out);
        for (int k = 0; k < K; ++k) {
          sum += static_cast<Sum>(left[lane / 4 + 8 * (r / 2)][k]) * static_cast<Sum>(right[k][lane % 4 * 2 + r % 2]);
        }
        out = static_cast<Acc>(sum);
      }
    }
  };
  ::gf::emu::warp_collective(what, 0xffffffffu, &own, combine, {__FILE__, __LINE__});
}

#endif

}  // namespace mma_detail

__device__ __forceinline__ void mma_m16n8k32_s8(int (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if defined(GF_SIMT)
  mma_detail::multiply<std::int8_t, std::int64_t, int, 32>(
      "mma_m16n8k32_s8", d, a, b, [](unsigned reg, int i) { return static_cast<std::int8_t>(reg >> (8 * i)); });
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  GF_UNROLL
  for (int r = 0; r < 4; ++r) {  // upper and lower eight rows, first and second half of K
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
                 : "+r"(d[2 * (r % 2)]), "+r"(d[2 * (r % 2) + 1])
                 : "r"(a[r]), "r"(b[r / 2]));
  }
#endif
}

__device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if defined(GF_SIMT)
  mma_detail::multiply<float, double, float, 16>("mma_m16n8k16_bf16", d, a, b, [](unsigned reg, int i) {
    return i == 0 ? mma_detail::bf16_low(reg) : mma_detail::bf16_high(reg);
  });
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  mma_detail::bf16_by_shuffles(d, a, b);
#endif
}

// Four 8 x 16-byte matrices from shared memory. Lane i gives the address of row i % 8 of matrix i / 8 (aligned to 16
// bytes) and gets, of every matrix j, r[j] = bytes 4t .. 4t+3 of row g. With the matrices (rows 0-7, 8-15) x (bytes
// 0-15, 16-31) of a tile in the order upper left, lower left, upper right, lower right, r is `a` above.
__device__ __forceinline__ void load_matrix_x4(unsigned (&r)[4], const void* shared_row) {
#if defined(GF_SIMT)
  struct Lane {
    unsigned* r;
    const void* row;
  } own{r, shared_row};
  if (reinterpret_cast<std::uintptr_t>(shared_row) % 16 != 0) ::gf::emu::fail("load_matrix_x4: unaligned address");
  const auto combine = [](void* const* payloads) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      for (int j = 0; j < 4; ++j) {
        const Lane* source = static_cast<const Lane*>(payloads[8 * j + lane / 4]);
        if (source == nullptr || payloads[lane] == nullptr) ::gf::emu::fail("load_matrix_x4: not all lanes take part");
        std::memcpy(&static_cast<Lane*>(payloads[lane])->r[j],
                    static_cast<const unsigned char*>(source->row) + 4 * (lane % 4), 4);
      }
    }
  };
  ::gf::emu::warp_collective("load_matrix_x4", 0xffffffffu, &own, combine, {__FILE__, __LINE__});
#else
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
#endif
}

}  // namespace GF_BACKEND
}  // namespace gf
