// A small product with one planted bug: what test_emulator.py expects the emulator to catch.
//
//     out[d, k] = Σₙ δ[n, d] · x[n, k]
//
// The shape of `update`'s main loop and of its sum split over N, on the smallest tiles: 32 × 16 of
// `out` by two warps, 16 rows of N a stage, three stages. As a program:
//
//     planted BUG THREADS BLOCKS WORKERS      0: right; 1: wrong numbers; 2: the emulator's error
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "options.h"
#include "ptx.cuh"

namespace {

enum Bug {
    kNone,
    kNoBarrierAfterWait,
    kWaitLeavesOneMore,
    kLoadBeforeBarrier,
    kSharedRowOutside,
    kGlobalRowOutside,
    kNoBarrierBeforeArrival,
    kNoBarrierAfterArrival,
    kNoFence,
    kBarrierOfSomeThreads,
    kBarriersOfTwoLines,
    kMisaligned,
    kLaneMissing,
    kWarpOnTwoLines,
    kReturnsBeforeLanding,
    kUnwrittenShared,
    kStoreOutsideShared,
};

constexpr int kRows = 16, kD = 32, kK = 16, kStages = 3, kThreads = 64;
constexpr int kDeltaRow = kD + 8, kXRow = kK + 8;  // padded against bank conflicts
constexpr int kStage = kRows * (kDeltaRow + kXRow);
constexpr int kShared = kStages * kStage * 2 + 16;

struct Table {
    const __nv_bfloat16* delta;  // (n, d)
    const __nv_bfloat16* x;      // (n, k)
    float* out;                  // (d, k)
    float* partial;              // (splits, tiles, kD, kK)
    int32_t* arrived;            // (tiles,), zeros
    int32_t n, d, k;             // d and k: multiples of 8
    int32_t bug;
};

__device__ void load_stage(const Table& t, __nv_bfloat16* stage, int n0, int d0, int k0) {
    constexpr int kDeltaCopies = kRows * kD / 8, kCopies = kDeltaCopies + kRows * kK / 8;
    for (int i = threadIdx.x; i < kCopies; i += kThreads) {
        const bool of_delta = i < kDeltaCopies;
        const int j = of_delta ? i : i - kDeltaCopies, chunks = (of_delta ? kD : kK) / 8;
        const int row = j / chunks, column = j % chunks * 8, width = of_delta ? t.d : t.k;
        const int n = n0 + row, at = (of_delta ? d0 : k0) + column;
        const __nv_bfloat16* from = of_delta ? t.delta : t.x;
        const bool inside = at < width && (n < t.n || t.bug == kGlobalRowOutside);
        __nv_bfloat16* to = of_delta ? stage + row * kDeltaRow + column
                                     : stage + kRows * kDeltaRow + row * kXRow + column;
        if (t.bug == kSharedRowOutside && row == kRows - 1) to += kStages * kStage;
        if (t.bug == kMisaligned) from += 4;
        if (t.bug == kUnwrittenShared && row == 3) continue;
        dfa::cp_async_16(to, inside ? from + int64_t{n} * width + at : from, inside ? 16 : 0);
    }
    dfa::cp_async_commit();
}

__global__ void __launch_bounds__(kThreads) product(DFA_TABLE(Table) t) {
    DFA_SHARED(raw);
    __nv_bfloat16* stages = reinterpret_cast<__nv_bfloat16*>(raw);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int tiles_k = (t.k + kK - 1) / kK, tile = blockIdx.x, splits = gridDim.y;
    const int d0 = tile / tiles_k * kD, k0 = tile % tiles_k * kK;
    const int all = (t.n + kRows - 1) / kRows, each = (all + splits - 1) / splits;
    const int first = blockIdx.y * each, count = min(each, all - first);

    float sum[2][4] = {};
    for (int i = 0; i < kStages - 1; ++i) {
        if (i < count) load_stage(t, stages + i * kStage, (first + i) * kRows, d0, k0);
        else dfa::cp_async_commit();
    }
    for (int i = 0; i < count; ++i) {
        if (t.bug == kWaitLeavesOneMore) dfa::cp_async_wait<kStages - 1>();
        else dfa::cp_async_wait<kStages - 2>();
        const int coming = i + kStages - 1;
        auto load = [&] {
            if (coming < count)
                load_stage(t, stages + coming % kStages * kStage, (first + coming) * kRows, d0, k0);
            else dfa::cp_async_commit();
        };
        if (t.bug == kLoadBeforeBarrier) load();
        if (t.bug == kBarrierOfSomeThreads) {
            if (warp == 0) __syncthreads();
        } else if (t.bug == kBarriersOfTwoLines) {
            if (warp == 0) __syncthreads();
            else
                __syncthreads();
        } else if (t.bug != kNoBarrierAfterWait) {
            __syncthreads();
        }
        if (t.bug != kLoadBeforeBarrier) load();

        const __nv_bfloat16* delta = stages + i % kStages * kStage;
        const __nv_bfloat16* x = delta + kRows * kDeltaRow;
        const int row = lane % 8, matrix = lane / 8;
        uint32_t a[4], b[4];
        dfa::ldmatrix_x4_trans(a, delta + (row + matrix / 2 * 8) * kDeltaRow + warp * 16 +
                                      matrix % 2 * 8);
        dfa::ldmatrix_x4_trans(b, x + (row + matrix % 2 * 8) * kXRow + matrix / 2 * 8);
        dfa::mma_m16n8k16_bf16(sum[0], a, {b[0], b[1]});
        dfa::mma_m16n8k16_bf16(sum[1], a, {b[2], b[3]});
    }
    if (t.bug == kLaneMissing && lane != 5) sum[0][0] = __shfl_sync(~0u, sum[0][0], lane);
    if (t.bug == kWarpOnTwoLines) {
        if (lane < 16) __syncwarp();
        else
            __syncwarp();
    }
    if (t.bug == kReturnsBeforeLanding) load_stage(t, stages, 0, d0, k0);
    if (t.bug == kReturnsBeforeLanding) return;
    dfa::cp_async_wait<0>();

    const int64_t entry = (int64_t{tile} * kD + warp * 16 + lane / 4) * kK + lane % 4 * 2;
    const int64_t part = int64_t{gridDim.x} * kD * kK;
    auto place = [&](int j, int i) { return entry + i / 2 * 8 * kK + j * 8 + i % 2; };
    for (int j = 0; j < 2; ++j)
        for (int i = 0; i < 4; ++i) t.partial[blockIdx.y * part + place(j, i)] = sum[j][i];

    // The last block of a tile adds the parts.
    int* is_last = reinterpret_cast<int*>(raw + kStages * kStage * 2);
    if (t.bug == kStoreOutsideShared) is_last[4] = 0;
    if (t.bug != kNoFence) __threadfence();
    if (t.bug != kNoBarrierBeforeArrival) __syncthreads();
    if (threadIdx.x == 0) *is_last = atomicAdd(&t.arrived[tile], 1) == splits - 1;
    if (t.bug != kNoBarrierAfterArrival) __syncthreads();
    if (!*is_last) return;
    if (t.bug != kNoFence) __threadfence();
    for (int j = 0; j < 2; ++j)
        for (int i = 0; i < 4; ++i) {
            const int d = d0 + warp * 16 + lane / 4 + i / 2 * 8;
            const int k = k0 + j * 8 + lane % 4 * 2 + i % 2;
            float total = 0;
            for (int s = 0; s < splits; ++s) total += t.partial[s * part + place(j, i)];
            if (d < t.d && k < t.k) t.out[int64_t{d} * t.k + k] = total;
        }
    if (threadIdx.x == 0) t.arrived[tile] = 0;
}

}  // namespace

int main(int, char** argument) {
    const int n = 163, d = 40, k = 24, splits = 2;
    const int tiles = (d + kD - 1) / kD * ((k + kK - 1) / kK);
    std::vector<__nv_bfloat16> delta(n * d), x(n * k);
    std::vector<float> out(d * k, NAN), partial(splits * tiles * kD * kK, NAN);
    std::vector<int32_t> arrived(tiles);
    for (size_t i = 0; i < delta.size(); ++i) delta[i] = static_cast<float>(i * 37 % 15) - 7;
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * 53 % 17) - 8;

    dfa::emulator::options = {strtoull(argument[2], nullptr, 10), strtoull(argument[3], nullptr, 10),
                              atoi(argument[4])};
    const Table table{delta.data(), x.data(), out.data(), partial.data(), arrived.data(),
                      n, d, k, atoi(argument[1])};
    const dfa::Error error = dfa::launch(product, dim3(tiles, splits), kThreads, kShared, nullptr, table);
    if (error != dfa::kSuccess) return std::printf("%s\n", dfa::error_text(error)), 2;

    int wrong = 0;
    for (int i = 0; i < d; ++i)
        for (int j = 0; j < k; ++j) {
            float sum = 0;
            for (int row = 0; row < n; ++row) sum += float{delta[row * d + i]} * float{x[row * k + j]};
            wrong += out[i * k + j] != sum;
        }
    if (wrong) std::printf("%d of %d entries are wrong\n", wrong, d * k);
    return wrong != 0;
}
