// δ made where it is used, from an error of at most kFlyError columns: it is never in memory.
//
//     δ = (e·B·scale) ⊙ f′(saved), rounded as a stored one would be; the head's: e ⊙ f′(saved)
//
// B's columns of the tile are made once and stay in shared memory as fp32. e·B runs on tensor
// cores in tf32, and where that would lose digits, with what it lost as a second operand.
#pragma once

#include "activation.cuh"
#include "launch.h"
#include "philox.cuh"
#include "ptx.cuh"
#include "update_apply.cuh"
#include "update_tile.cuh"

namespace dfa {

template <class Shape>
struct Delta {
    using Element = typename Shape::Element;
    using Tile = SharedTile<Shape>;
    static constexpr int kN = Shape::kN, kThreads = Shape::kThreads;
    static constexpr int kColumns = Shape::kSide / (kThreads / 32);  // of δ, a warp's
    // Strides of rows without bank conflicts among mma's fragments.
    static constexpr int kStrideB = Shape::kSide + 8, kStrideE = kFlyError + 4;
    static constexpr int kErrors = kN * kFlyError / kThreads;  // a thread's
    static constexpr int kBytes = 4 * (kFlyError * kStrideB + kN * kStrideE);

    const UpdateTable& table;
    float* b;  // (kFlyError, kSide) in shared memory
    float* e;  // (kN, kFlyError)
    int d0;
    int stream = kHead, width = 0;  // of the B that is there
    uint32_t fetched[kErrors];      // of e, as they lie in memory

    __device__ __forceinline__ Delta(const UpdateTable& table, unsigned char* shared, int d0)
        : table(table), b(reinterpret_cast<float*>(shared)), e(b + kFlyError * kStrideB), d0(d0) {}

    // B's rows, up to a whole 8 of them, of the columns from d0.
    __device__ __forceinline__ void make_b(const Segment& segment) {
        if (segment.stream == kHead) return;
        if (segment.stream == stream && segment.error_width == width) return;
        stream = segment.stream, width = segment.error_width;
        constexpr int kParts = Shape::kSide / 16;
        for (int i = threadIdx.x; i < (width + 7) / 8 * 8 * kParts; i += kThreads) {
            const int k = i / kParts, j = i % kParts * 16;
            float entry[16];
            entries_of<16>(table.distribution, table.seed, stream, k, d0 + j, entry);
#pragma unroll
            for (int at = 0; at < 16; ++at) b[k * kStrideB + j + at] = entry[at];
        }
    }

    // Starts loading the rows n0… of e, zeros outside, into registers.
    __device__ __forceinline__ void fetch(const Segment& segment, int n0) {
#pragma unroll
        for (int i = 0; i < kErrors; ++i) {
            const int index = threadIdx.x + i * kThreads;
            const int n = n0 + index / kFlyError, k = index % kFlyError;
            fetched[i] = 0;
            if (n < segment.rows && k < segment.error_width) {
                const int row = segment.repeat == 1 ? n : n / segment.repeat;
                fetched[i] = bits_at(table.error, segment.error, row * segment.error_stride + k);
            }
        }
    }

    __device__ __forceinline__ void put_fetched() {
#pragma unroll
        for (int i = 0; i < kErrors; ++i) {
            const int index = threadIdx.x + i * kThreads;
            e[index / kFlyError * kStrideE + index % kFlyError] = as_float(table.error, fetched[i]);
        }
    }

    // Turns a tile of what f′ is read from into δ; every thread reads what it overwrites.
    __device__ __forceinline__ void make(const Segment& segment, Element* tile) {
        constexpr int kTiles = kColumns / 8;
        const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
        const int column = threadIdx.x / 32 * kColumns + 2 * q;
#pragma unroll 1
        for (int n = 0; n < kN; n += 16) {
            float delta[kTiles][4] = {};
            if (segment.stream == kHead) {
#pragma unroll
                for (int i = 0; i < kTiles * 4; ++i) {
                    const int d = d0 + column + i / 4 * 8 + i % 2;
                    if (d < kFlyError) delta[i / 4][i % 4] = e[(n + g + i / 2 % 2 * 8) * kStrideE + d];
                }
            } else {
                project(delta, n);
            }
#pragma unroll
            for (int j = 0; j < kTiles; ++j) {
                Element* upper = tile + Tile::place(n + g, column + 8 * j);
                Element* lower = tile + Tile::place(n + g + 8, column + 8 * j);
                if (segment.stream != kHead) {
#pragma unroll
                    for (int r = 0; r < 4; ++r) delta[j][r] *= segment.scale;
                }
                if (segment.activation != Activation::identity) {
                    const float2 u = get_pair(upper), l = get_pair(lower);
                    const float saved[4] = {u.x, u.y, l.x, l.y};
                    derivative(segment.activation, delta[j], saved);
                }
                put_pair(upper, delta[j][0], delta[j][1]);
                put_pair(lower, delta[j][2], delta[j][3]);
            }
        }
    }

    // δ += e·B of the 16 rows from n.
    template <int TILES>
    __device__ __forceinline__ void project(float (&delta)[TILES][4], int n) const {
        const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
        const bool wide = table.error == DType::f32 || sizeof(Element) == 4;
        const bool rounded_e = table.error == DType::f32;
        const bool rounded_b = wide && table.distribution == Distribution::normal;
        for (int k = 0; k < width; k += 8) {
            uint32_t high[4], low[4];
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                split(e[(n + g + r % 2 * 8) * kStrideE + k + q + r / 2 * 4], high[r], low[r]);
            }
#pragma unroll
            for (int j = 0; j < TILES; ++j) {
                const float* from = b + (k + q) * kStrideB + threadIdx.x / 32 * kColumns + 8 * j + g;
                uint32_t b_high[2], b_low[2];
                split(from[0], b_high[0], b_low[0]);
                split(from[4 * kStrideB], b_high[1], b_low[1]);
                if (rounded_b) mma_m16n8k8_tf32(delta[j], high, b_low);
                if (rounded_e) mma_m16n8k8_tf32(delta[j], low, b_high);
                mma_m16n8k8_tf32(delta[j], high, b_high);
            }
        }
    }

    // value = high + low, both tf32; an infinite one leaves nothing.
    static __device__ __forceinline__ void split(float value, uint32_t& high, uint32_t& low) {
        high = cvt_tf32(value) & 0xFFFFE000u;
        const float rounded = __uint_as_float(high);
        low = cvt_tf32(value == rounded ? 0.0f : value - rounded);
    }
};

}  // namespace dfa
