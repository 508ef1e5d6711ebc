// What a program of `update` is made of, and how tiles of δ and x come to shared memory.
#pragma once

#include "platform.h"
#include "ptx.cuh"
#include "tables.h"

namespace dfa {

template <Compute>
struct ElementOf {
    using Type = float;
};
template <>
struct ElementOf<Compute::bf16> {
    using Type = __nv_bfloat16;
};
template <>
struct ElementOf<Compute::f16> {
    using Type = __half;
};

// A program makes kSide × kSide of dW, kN rows of the sum at a time. With δ on the fly the tile is
// small: that is for narrow layers, whose large tiles would be few.
template <Compute compute, bool large, bool fly>
struct UpdateShape {
    static_assert(!(large && fly));
    using Element = typename ElementOf<compute>::Type;  // of x and δ
    static constexpr Compute kCompute = compute;
    static constexpr bool kFly = fly;
    static constexpr int kSide = large ? 128 : 64;
    static constexpr int kN = sizeof(Element) == 2 ? 32 : 16;
    static constexpr int kThreads = compute == Compute::f32 ? 256 : 128;
    // Programs of a multiprocessor, as far as registers go.
    static constexpr int kBlocks = large || compute == Compute::f32 ? 2 : fly ? 3 : 4;
    // Three of 16 KB: two programs in the 100 KB that a multiprocessor has on sm_86, 89 and 120.
    static constexpr int kStages = large ? 3 : 4;
};

// A tile (kN, kSide) in shared memory, rows of whole 16-byte vectors. A row's vectors change places
// by xor with its number, so that eight rows' vectors of one column (ldmatrix), or four rows' pairs
// of vectors (tf32), lie in all banks; FMA units' threads read one row together.
template <class Shape>
struct SharedTile {
    using Element = typename Shape::Element;
    static constexpr int kVector = 16 / sizeof(Element), kVectors = Shape::kSide / kVector;
    static constexpr int kElements = Shape::kN * Shape::kSide;

    static __device__ __forceinline__ int place(int n, int column) {
        const int turn = Shape::kCompute == Compute::f32    ? 0
                         : Shape::kCompute == Compute::tf32 ? 2 * n & 6
                                                            : n & 7;
        return n * Shape::kSide + (column / kVector ^ turn) * kVector + column % kVector;
    }

    // Starts copying rows n0… and columns c0… of a matrix (rows, width), zeros outside. `aligned`:
    // its rows are whole vectors, if need be beyond its width. Others are copied at once.
    static __device__ __forceinline__ void copy(Element* tile, const void* matrix, int64_t stride,
                                                int n0, int rows, int c0, int width,
                                                bool aligned) {
        // Threads side by side copy vectors of a row, each the same columns of several rows.
        constexpr int kStep = Shape::kThreads / kVectors;
        static_assert(Shape::kThreads % kVectors == 0 && Shape::kN % kStep == 0);
        const int column = threadIdx.x % kVectors * kVector, first = threadIdx.x / kVectors;
        const int fits = width - (c0 + column);
        rows -= n0 + first;
        const Element* from = static_cast<const Element*>(matrix);
        from += (n0 + first) * stride + c0 + column;
        if (aligned) {
#pragma unroll
            for (int n = 0; n < Shape::kN; n += kStep, from += kStep * stride) {
                const bool inside = n < rows && fits > 0;
                cp_async_16(tile + place(first + n, column), inside ? from : matrix,
                            inside ? 16 : 0);
            }
            return;
        }
#pragma unroll 1
        for (int n = 0; n < Shape::kN; n += kStep, from += kStep * stride) {
            alignas(16) Element vector[kVector];
#pragma unroll
            for (int j = 0; j < kVector; ++j) {
                vector[j] = n < rows && j < fits ? from[j] : Element(0.0f);
            }
            *reinterpret_cast<uint4*>(tile + place(first + n, column)) =
                *reinterpret_cast<const uint4*>(vector);
        }
    }
};

// Two adjacent elements of a tile.
__device__ __forceinline__ void put_pair(float* at, float a, float b) {
    *reinterpret_cast<float2*>(at) = make_float2(a, b);
}
__device__ __forceinline__ void put_pair(__nv_bfloat16* at, float a, float b) {
    *reinterpret_cast<__nv_bfloat162*>(at) = __floats2bfloat162_rn(a, b);
}
__device__ __forceinline__ void put_pair(__half* at, float a, float b) {
    *reinterpret_cast<__half2*>(at) = __floats2half2_rn(a, b);
}
__device__ __forceinline__ float2 get_pair(const float* at) {
    return *reinterpret_cast<const float2*>(at);
}
__device__ __forceinline__ float2 get_pair(const __nv_bfloat16* at) {
    return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(at));
}
__device__ __forceinline__ float2 get_pair(const __half* at) {
    return __half22float2(*reinterpret_cast<const __half2*>(at));
}

}  // namespace dfa
