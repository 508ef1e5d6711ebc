// Each instruction of ptx.cuh on one warp, with the registers as they are given: for
// instructions.py, by ctypes. By g++ it runs on the emulator, by nvcc on a GPU.
#include "ptx.cuh"

namespace {

struct Registers {
    const uint32_t *a, *b;  // (32 lanes, 4), (32 lanes, 2)
    float* d;               // (32 lanes, 4)
    int32_t kind;           // 0: bf16; 1: f16; 2: tf32
};

__global__ void multiply(DFA_TABLE(Registers) table) {
    const int lane = threadIdx.x;
    uint32_t a[4], b[2];
    float d[4];
    for (int i = 0; i < 4; ++i) a[i] = table.a[4 * lane + i], d[i] = table.d[4 * lane + i];
    for (int i = 0; i < 2; ++i) b[i] = table.b[2 * lane + i];
    if (table.kind == 0) dfa::mma_m16n8k16_bf16(d, a, b);
    if (table.kind == 1) dfa::mma_m16n8k16_f16(d, a, b);
    if (table.kind == 2) dfa::mma_m16n8k8_tf32(d, a, b);
    for (int i = 0; i < 4; ++i) table.d[4 * lane + i] = d[i];
}

// `matrices`: (4, 8, 8) of 16 bits; `r`: (32 lanes, 4).
__global__ void load(const uint16_t* matrices, uint32_t* r, bool transposed) {
    DFA_SHARED(rows);
    const int lane = threadIdx.x;
    dfa::cp_async_16(rows + 16 * lane, matrices + 8 * lane);
    dfa::cp_async_commit();
    dfa::cp_async_wait<0>();
    __syncthreads();
    uint32_t mine[4];
    if (transposed) dfa::ldmatrix_x4_trans(mine, rows + 16 * lane);
    else dfa::ldmatrix_x4(mine, rows + 16 * lane);
    for (int i = 0; i < 4; ++i) r[4 * lane + i] = mine[i];
}

// What a lane gets from each of the shuffles, and the vote: `out` is (5, 32).
__global__ void exchange(const int32_t* in, int32_t* out) {
    const int lane = threadIdx.x, mine = in[lane];
    constexpr uint32_t kAll = ~0u;
    out[lane] = __shfl_sync(kAll, mine, 35);
    out[32 + lane] = __shfl_sync(kAll, mine, 1, 4);
    out[64 + lane] = __shfl_xor_sync(kAll, mine, 3);
    out[96 + lane] = __shfl_down_sync(kAll, mine, 5);
    out[128 + lane] = static_cast<int32_t>(__ballot_sync(kAll, mine % 3 == 0));
}

__global__ void round_all(const float* in, uint32_t* out, int32_t count) {
    for (int i = threadIdx.x; i < count; i += 32) out[i] = dfa::cvt_tf32(in[i]);
}

}  // namespace

#define DFA_EXPORTED extern "C" __attribute__((visibility("default")))

DFA_EXPORTED dfa::Error run_multiply(const uint32_t* a, const uint32_t* b, float* d, int kind) {
    return dfa::launch(multiply, 1, 32, 0, nullptr, Registers{a, b, d, kind});
}
DFA_EXPORTED dfa::Error run_load(const uint16_t* matrices, uint32_t* r, bool transposed) {
    return dfa::launch(load, 1, 32, 512, nullptr, matrices, r, transposed);
}
DFA_EXPORTED dfa::Error run_exchange(const int32_t* in, int32_t* out) {
    return dfa::launch(exchange, 1, 32, 0, nullptr, in, out);
}
DFA_EXPORTED dfa::Error run_round(const float* in, uint32_t* out, int32_t count) {
    return dfa::launch(round_all, 1, 32, 0, nullptr, in, out, count);
}
