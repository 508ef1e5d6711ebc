// One function for each PTX instruction that the kernels use. The emulator has its own of each.
#pragma once

#include "platform.h"

#ifdef __CUDACC__

namespace dfa {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// 16 bytes from global to shared memory, past the registers: `bytes` are read, zeros follow. Both
// addresses are multiples of 16 even where nothing is read.
__device__ __forceinline__ void cp_async_16(void* to, const void* from, int bytes = 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(bytes)
                 : "memory");
}

// Closes this thread's group of copies, an empty one too.
__device__ __forceinline__ void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most `left` of this thread's groups are under way.
template <int left>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
}

// Four 8 × 8 matrices of 16 bits; lane l holds the address of row l % 8 of matrix l / 8. To lane l
// goes, of each, row l / 4, columns 2·(l % 4) and the next: as mma's A and B (N-major) want it.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same of the transposed matrices: column l / 4, rows 2·(l % 4) and the next.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// D (16, 8) += A (16, K) · B (K, 8), with g = lane / 4 and q = lane % 4:
//   d[i]                row g + 8·(i / 2),  column 2q + i % 2
//   a[i], K = 16        row g + 8·(i % 2),  columns 2q + 8·(i / 2) and the next, low half first
//   b[i], K = 16        rows 2q + 8·i and the next, low half first,  column g
//   a[i], K = 8, tf32   row g + 8·(i % 2),  column q + 4·(i / 2)
//   b[i], K = 8, tf32   row q + 4·i,  column g
#define DFA_MMA(name, shape)                                                                  \
    __device__ __forceinline__ void name(float (&d)[4], const uint32_t (&a)[4],               \
                                         const uint32_t (&b)[2]) {                            \
        asm volatile("mma.sync.aligned." shape                                                \
                     " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"       \
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                         \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));     \
    }
DFA_MMA(mma_m16n8k16_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32")
DFA_MMA(mma_m16n8k16_f16, "m16n8k16.row.col.f32.f16.f16.f32")
DFA_MMA(mma_m16n8k8_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef DFA_MMA

// To the nearest tf32, halves away from zero; the 13 low bits are of no meaning.
__device__ __forceinline__ uint32_t cvt_tf32(float value) {
    uint32_t rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(value));
    return rounded;
}

}  // namespace dfa

#endif
