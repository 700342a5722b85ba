// The tensor-core product of one warp, and the load that brings shared memory into its layout. All 32 lanes call.
//
// With g = lane / 4 and t = lane % 4, D [16, 8] += A [16, 32] B [32, 8] is spread over the lanes as
//   d[0], d[1] = D[g][2t], D[g][2t+1]          d[2], d[3] = D[g+8][2t], D[g+8][2t+1]
// and, four int8 elements of A or B packed in each 32-bit register, lowest first:
//   a[0] = A[g][4t ...]      a[1] = A[g+8][4t ...]      a[2] = A[g][16 + 4t ...]   a[3] = A[g+8][16 + 4t ...]
//   b[0] = B[4t ...][g]      b[1] = B[16 + 4t ...][g]
// so with B stored by columns ([8, 32], a row for each output), both operands load 4 adjacent bytes at a time.
//
// Sums are exact (mod 2^32). Before Ampere (sm_75) they go through the smaller tensor-core shape.
#pragma once

#include <cstdint>

#include "device.cuh"

namespace gf {
inline namespace GF_BACKEND {

#if defined(GF_SIMT)

namespace mma_detail {

struct Lane {
  int* d;
  const unsigned* a;
  const unsigned* b;
};

inline std::int8_t element(unsigned reg, int i) { return static_cast<std::int8_t>(reg >> (8 * i)); }

// Reads the whole operands back from the lanes' registers and multiplies them the plain way.
inline void multiply(void* const* payloads) {
  std::int8_t left[16][32];
  std::int8_t right[32][8];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const Lane* l = static_cast<const Lane*>(payloads[lane]);
    if (l == nullptr) ::gf::emu::fail("mma: lane %d does not take part", lane);
    for (int i = 0; i < 4; ++i) {
      const int k = lane % 4 * 4 + i;
      for (int r = 0; r < 4; ++r) left[lane / 4 + 8 * (r % 2)][k + 16 * (r / 2)] = element(l->a[r], i);
      for (int r = 0; r < 2; ++r) right[k + 16 * r][lane / 4] = element(l->b[r], i);
    }
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    for (int r = 0; r < 4; ++r) {
      int& out = static_cast<Lane*>(payloads[lane])->d[r];
      std::int64_t sum = out;
      for (int k = 0; k < 32; ++k) sum += left[lane / 4 + 8 * (r / 2)][k] * right[k][lane % 4 * 2 + r % 2];
      out = static_cast<int>(sum);
    }
  }
}

}  // namespace mma_detail

#endif

__device__ __forceinline__ void mma_m16n8k32_s8(int (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if defined(GF_SIMT)
  mma_detail::Lane own{d, a, b};
  ::gf::emu::warp_collective("mma_m16n8k32_s8", 0xffffffffu, &own, mma_detail::multiply, {__FILE__, __LINE__});
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
