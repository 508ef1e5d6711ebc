// dW += δᵀ·x and db += Σ δ of tiles in shared memory, accumulated in fp32 registers.
//
// Both tiles have the rows of the sum along N: (N, D) and (N, K). ldmatrix turns 16-bit elements
// on their way into mma's fragments, 32-bit ones are loaded where they are wanted.
#pragma once

#include "ptx.cuh"
#include "update_tile.cuh"

namespace dfa {

// On tensor cores: 2 × 2 warps, each with a quarter of the tile.
template <class Shape>
struct TensorProduct {
    using Element = typename Shape::Element;
    using Tile = SharedTile<Shape>;
    static constexpr Compute kCompute = Shape::kCompute;
    static constexpr int kBands = 2, kHalf = Shape::kSide / 2;
    static constexpr int kAlongD = kHalf / 16, kAlongK = kHalf / 8;  // mma's D, of a warp
    static_assert(Shape::kThreads == 128, "four warps");

    float weight[kAlongD][kAlongK][4];
    float bias[kAlongD][4];
    int lane, d0, k0;  // of the warp's quarter

    __device__ __forceinline__ TensorProduct() {
        lane = threadIdx.x % 32;
        d0 = threadIdx.x / 64 * kHalf;
        k0 = threadIdx.x / 32 % 2 * kHalf;
#pragma unroll
        for (int i = 0; i < kAlongD; ++i) {
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                bias[i][r] = 0.0f;
#pragma unroll
                for (int j = 0; j < kAlongK; ++j) weight[i][j][r] = 0.0f;
            }
        }
    }

    __device__ __forceinline__ void add(const Element* delta, const Element* x, bool with_bias) {
        with_bias = with_bias && k0 == 0;
        if constexpr (kCompute == Compute::tf32) {
            add_tf32(delta, x, with_bias);
        } else {
            add_half(delta, x, with_bias);
        }
    }

    __device__ __forceinline__ void add_half(const Element* delta, const Element* x,
                                             bool with_bias) {
        constexpr uint32_t kOne = kCompute == Compute::bf16 ? 0x3F803F80 : 0x3C003C00;
        const uint32_t ones[2] = {kOne, kOne};
#pragma unroll
        for (int n = 0; n < Shape::kN; n += 16) {
            uint32_t a[kAlongD][4], b[kAlongK][2];
#pragma unroll
            for (int i = 0; i < kAlongD; ++i) {  // lanes 8 to 15: the next 8 features
                const int row = n + lane % 8 + lane / 16 * 8;
                ldmatrix_x4_trans(
                    a[i], delta + Tile::place(row, d0 + 16 * i + lane / 8 % 2 * 8));
            }
#pragma unroll
            for (int j = 0; j < kAlongK; j += 2) {  // lanes 8 to 15: the next 8 rows
                uint32_t four[4];
                ldmatrix_x4_trans(
                    four, x + Tile::place(n + lane % 16, k0 + 8 * j + lane / 16 * 8));
                b[j][0] = four[0], b[j][1] = four[1];
                b[j + 1][0] = four[2], b[j + 1][1] = four[3];
            }
#pragma unroll
            for (int i = 0; i < kAlongD; ++i) {
#pragma unroll
                for (int j = 0; j < kAlongK; ++j) multiply(weight[i][j], a[i], b[j]);
            }
            if (with_bias) {
#pragma unroll
                for (int i = 0; i < kAlongD; ++i) multiply(bias[i], a[i], ones);
            }
        }
    }

    static __device__ __forceinline__ void multiply(float (&sum)[4], const uint32_t (&a)[4],
                                                    const uint32_t (&b)[2]) {
        if constexpr (kCompute == Compute::bf16) mma_m16n8k16_bf16(sum, a, b);
        if constexpr (kCompute == Compute::f16) mma_m16n8k16_f16(sum, a, b);
        if constexpr (kCompute == Compute::tf32) mma_m16n8k8_tf32(sum, a, b);
    }

    __device__ __forceinline__ void add_tf32(const Element* delta, const Element* x,
                                             bool with_bias) {
        const int g = lane / 4, q = lane % 4;
#pragma unroll
        for (int n = 0; n < Shape::kN; n += 8) {
            uint32_t a[kAlongD][4], b[kAlongK][2];
#pragma unroll
            for (int i = 0; i < kAlongD; ++i) {
#pragma unroll
                for (int r = 0; r < 4; ++r) {
                    const float one =
                        delta[Tile::place(n + q + r / 2 * 4, d0 + 16 * i + g + r % 2 * 8)];
                    if (with_bias) bias[i][2 * (r % 2)] += one;  // unrounded
                    a[i][r] = cvt_tf32(one);
                }
            }
#pragma unroll
            for (int j = 0; j < kAlongK; ++j) {
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    b[j][r] = cvt_tf32(x[Tile::place(n + q + 4 * r, k0 + 8 * j + g)]);
                }
            }
#pragma unroll
            for (int i = 0; i < kAlongD; ++i) {
#pragma unroll
                for (int j = 0; j < kAlongK; ++j) multiply(weight[i][j], a[i], b[j]);
            }
        }
    }

    // The rows of a band of dW, a half of the tile's.
    __device__ __forceinline__ void put(int band, float* to, int stride) const {
        if (d0 != band * kHalf) return;
        to += lane / 4 * stride + k0 + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < kAlongD; ++i) {
#pragma unroll
            for (int j = 0; j < kAlongK; ++j) {
                float* at = to + 16 * i * stride + 8 * j;
                put_pair(at, weight[i][j][0], weight[i][j][1]);
                put_pair(at + 8 * stride, weight[i][j][2], weight[i][j][3]);
            }
        }
    }

    // All of db. By every thread of the warps that have it, for lanes add up tf32's.
    __device__ __forceinline__ void put_bias(float* to) const {
        if (k0 != 0) return;
#pragma unroll
        for (int i = 0; i < kAlongD; ++i) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                float sum = bias[i][2 * r];
                if constexpr (kCompute == Compute::tf32) {
                    sum += __shfl_xor_sync(~0u, sum, 1);
                    sum += __shfl_xor_sync(~0u, sum, 2);
                }
                if (lane % 4 == 0) to[d0 + 16 * i + 8 * r + lane / 4] = sum;
            }
        }
    }
};

// On FMA units: 16 × 16 threads, each with kMany × kMany fours of rows and columns, 64 apart.
template <class Shape>
struct ScalarProduct {
    using Tile = SharedTile<Shape>;
    static constexpr int kMany = Shape::kSide / 64, kBands = kMany;
    static_assert(Shape::kThreads == 256, "16 x 16 threads");

    float weight[kMany][4][kMany][4];
    float bias = 0.0f;  // a thread's own row of the first kSide
    int d0, k0;         // the first of its rows and columns of the product

    __device__ __forceinline__ ScalarProduct() {
        d0 = threadIdx.x / 16 * 4;
        k0 = threadIdx.x % 16 * 4;
#pragma unroll
        for (int i = 0; i < kMany * 4; ++i) {
#pragma unroll
            for (int j = 0; j < kMany * 4; ++j) weight[i / 4][i % 4][j / 4][j % 4] = 0.0f;
        }
    }

    __device__ __forceinline__ void add(const float* delta, const float* x, bool with_bias) {
#pragma unroll 2
        for (int n = 0; n < Shape::kN; ++n) {
            float a[kMany][4], b[kMany][4];
#pragma unroll
            for (int i = 0; i < kMany; ++i) {
                four(a[i], delta + Tile::place(n, d0 + 64 * i));
                four(b[i], x + Tile::place(n, k0 + 64 * i));
            }
#pragma unroll
            for (int i = 0; i < kMany * 4; ++i) {
#pragma unroll
                for (int j = 0; j < kMany * 4; ++j) {
                    float& sum = weight[i / 4][i % 4][j / 4][j % 4];
                    sum = fmaf(a[i / 4][i % 4], b[j / 4][j % 4], sum);
                }
            }
        }
        if (with_bias && threadIdx.x < Shape::kSide) {
#pragma unroll
            for (int n = 0; n < Shape::kN; ++n) bias += delta[Tile::place(n, threadIdx.x)];
        }
    }

    static __device__ __forceinline__ void four(float (&to)[4], const float* from) {
        const float4 vector = *reinterpret_cast<const float4*>(from);
        to[0] = vector.x, to[1] = vector.y, to[2] = vector.z, to[3] = vector.w;
    }

    __device__ __forceinline__ void put(int band, float* to, int stride) const {
#pragma unroll
        for (int i = 0; i < kMany; ++i) {
            if (i != band) continue;
#pragma unroll
            for (int r = 0; r < 4; ++r) {
#pragma unroll
                for (int j = 0; j < kMany; ++j) {
                    const float(&sum)[4] = weight[i][r][j];
                    *reinterpret_cast<float4*>(to + (d0 + r) * stride + k0 + 64 * j) =
                        make_float4(sum[0], sum[1], sum[2], sum[3]);
                }
            }
        }
    }

    __device__ __forceinline__ void put_bias(float* to) const {
        if (threadIdx.x < Shape::kSide) to[threadIdx.x] = bias;
    }
};

}  // namespace dfa
