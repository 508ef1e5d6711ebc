// δ of every target of a group from a warp's product, which goes through shared memory: there any
// lane reaches any part of it, and eight of them write a row of 64 columns in whole vectors.
#pragma once

#include "activation.cuh"
#include "element.cuh"
#include "project_product.cuh"

namespace dfa {

// Rows that a warp brings to shared memory at once, and where they lie.
template <class Shape>
struct Staged {
    static constexpr int kRows = Shape::kRows < 32 ? Shape::kRows : 32;
    static constexpr int kPasses = Shape::kRows / kRows;
    static constexpr int kPitch = 64 + 4;  // four rows' vectors lie in all banks
    static constexpr int kBytes = kRows * kPitch * 4 * Shape::kThreads / 32;
};

// Rows kRows·pass … of a product.
template <Compute compute, class Shape>
__device__ __forceinline__ void stage(float* staged, const Product<compute, Shape>& product,
                                      int pass) {
    const int g = threadIdx.x / 4 % 8, q = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 2 * Shape::kTiles; ++i) {  // of eight rows
        constexpr int kEights = Staged<Shape>::kRows / 8;
        if (i / kEights != pass) continue;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float row[8];
#pragma unroll
            for (int c = 0; c < 8; ++c) {
                row[c] = product.sum[i / 2][4 * half + c / 2][2 * (i % 2) + c % 2];
            }
            const int at = (i % kEights * 8 + g) * Staged<Shape>::kPitch + 32 * half + 8 * q;
            store_eight(staged + at, row);
        }
    }
}

// The error itself, from row n and column d on, where a product would be.
template <class Shape>
__device__ __forceinline__ void stage_error(float* staged, const ProjectGroup& group, DType dtype,
                                            int n, int d) {
    for (int i = threadIdx.x % 32; i < Staged<Shape>::kRows * 64; i += 32) {
        const int row = n + i / 64, column = d + i % 64;
        const bool inside = row < group.rows && column < group.error_width;
        const int64_t at = row * group.error_stride + column;
        staged[i / 64 * Staged<Shape>::kPitch + i % 64] =
            inside ? load_element(dtype, group.error, at) : 0.0f;
    }
}

// out = (product·scale / √repeat) ⊙ f′(saved), from row n of the error and column d on.
template <class Shape>
__device__ __forceinline__ void serve(const ProjectTarget& target, const float* staged, float scale,
                                      DType dtype, int n, int rows, int d) {
    const int repeat = target.repeat, width = target.width, padded = target.padded;
    const bool slope = target.activation != Activation::identity;
    const float factor = scale / sqrtf(float(repeat));
#pragma unroll 1
    for (int i = threadIdx.x % 32; i < Staged<Shape>::kRows * 8; i += 32) {
        const int row = n + i / 8, column = d + i % 8 * 8;
        if (row >= rows || column >= padded) continue;
        const int wanted = column + 8;
        const bool whole = target.aligned && wanted <= padded && (!slope || wanted <= width);
        float product[8];
        load_eight(staged + i / 8 * Staged<Shape>::kPitch + i % 8 * 8, product);
#pragma unroll
        for (int c = 0; c < 8; ++c) product[c] = column + c < width ? product[c] * factor : 0.0f;
#pragma unroll 1
        for (int r = 0; r < repeat; ++r) {
            const int64_t at = int64_t(row) * repeat + r;
            const int64_t to = at * target.out_stride + column;
            float delta[8];
#pragma unroll
            for (int c = 0; c < 8; ++c) delta[c] = product[c];
            if (slope) {
                const int64_t from = at * target.saved_stride + column;
                float saved[8];
                if (whole) {
                    load_eight(dtype, target.saved, from, saved);
                } else {
#pragma unroll
                    for (int c = 0; c < 8; ++c) {
                        const bool inside = column + c < width;
                        saved[c] = inside ? load_element(dtype, target.saved, from + c) : 0.0f;
                    }
                }
                derivative(target.activation, delta, saved);
            }
            if (whole) {
                store_eight(dtype, target.out, to, delta);
            } else {
#pragma unroll
                for (int c = 0; c < 8; ++c) {
                    if (column + c < padded) store_element(dtype, target.out, to + c, delta[c]);
                }
            }
        }
    }
}

}  // namespace dfa
