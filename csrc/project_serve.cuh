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

// Eight elements as they lie in memory, 16-bit ones in pairs: nothing waits for one load before the
// next is under way.
template <int WORDS>
struct Eight {
    uint32_t word[WORDS];
};

// `whole`: they are vectors; else only the first `count` are read.
template <int WORDS>
__device__ __forceinline__ Eight<WORDS> load(const void* base, int64_t at, bool whole, int count) {
    Eight<WORDS> made = {};
    if (whole) {
        const auto from = reinterpret_cast<const uint4*>(static_cast<const char*>(base) +
                                                         at * (WORDS / 2));
#pragma unroll
        for (int v = 0; v < WORDS / 4; ++v) {
            const uint4 vector = from[v];
            made.word[4 * v] = vector.x, made.word[4 * v + 1] = vector.y;
            made.word[4 * v + 2] = vector.z, made.word[4 * v + 3] = vector.w;
        }
        return made;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        if (i >= count) break;
        if constexpr (WORDS == 8) {
            made.word[i] = static_cast<const uint32_t*>(base)[at + i];
        } else {
            made.word[i / 2] |= uint32_t(static_cast<const uint16_t*>(base)[at + i]) << i % 2 * 16;
        }
    }
    return made;
}

template <int WORDS>
__device__ __forceinline__ void unpack(DType dtype, const Eight<WORDS>& eight, float (&value)[8]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        float2 pair;
        if constexpr (WORDS == 8) {
            pair = make_float2(__uint_as_float(eight.word[2 * i]),
                               __uint_as_float(eight.word[2 * i + 1]));
        } else {
            pair = dtype == DType::bf16 ? unpack_bf16(eight.word[i]) : unpack_f16(eight.word[i]);
        }
        value[2 * i] = pair.x, value[2 * i + 1] = pair.y;
    }
}

// out = product·factor ⊙ f′(saved), from row n of the error and column d on: WORDS of eight
// elements of out and saved. A lane has the same eight columns of every fourth row, as many of them
// on their way at once as its registers hold.
template <class Shape, int WORDS>
__device__ __forceinline__ void serve(const ProjectTarget& target, const float* staged,
                                      float factor, DType dtype, int n, int rows, int d) {
    constexpr int kVectors = Staged<Shape>::kRows / 4, kPitch = Staged<Shape>::kPitch;
    constexpr int kMost = WORDS == 4 ? Shape::kAhead : Shape::kAheadOfFloats;
    constexpr int kAhead = kVectors < kMost ? kVectors : kMost;
    const int lane = threadIdx.x % 32, column = d + lane % 8 * 8;
    const int width = target.width - column, padded = target.padded - column;
    const bool slope = target.activation != Activation::identity;
    const bool whole = target.aligned && padded >= 8 && (!slope || width >= 8);
    if (padded <= 0) return;
    n += lane / 8;
    staged += lane / 8 * kPitch + lane % 8 * 8;
#pragma unroll 1
    for (int r = 0; r < target.repeat; ++r) {
#pragma unroll 1
        for (int first = 0; first < kVectors; first += kAhead) {
            Eight<WORDS> saved[kAhead];
            const auto row = [&](int v) { return n + 4 * (first + v); };
            const auto at = [&](int v) { return int64_t(row(v)) * target.repeat + r; };
#pragma unroll
            for (int v = 0; v < kAhead; ++v) {
                if (!slope || row(v) >= rows) break;
                const int64_t from = at(v) * target.saved_stride + column;
                saved[v] = load<WORDS>(target.saved, from, whole, width);
            }
#pragma unroll
            for (int v = 0; v < kAhead; ++v) {
                if (row(v) >= rows) break;
                float delta[8], s[8];
                load_eight(staged + 4 * (first + v) * kPitch, delta);
#pragma unroll
                for (int c = 0; c < 8; ++c) delta[c] = c < width ? delta[c] * factor : 0.0f;
                if (slope) {
                    unpack(dtype, saved[v], s);
                    derivative(target.activation, delta, s);
                }
                const int64_t to = at(v) * target.out_stride + column;
                if (whole) {
                    store_eight(dtype, target.out, to, delta);
                    continue;
                }
#pragma unroll
                for (int c = 0; c < 8; ++c) {
                    if (c < padded) store_element(dtype, target.out, to + c, delta[c]);
                }
            }
        }
    }
}

// The same, of whichever dtype.
template <class Shape>
__device__ __forceinline__ void serve(const ProjectTarget& target, const float* staged, float scale,
                                      DType dtype, int n, int rows, int d) {
    const float factor = scale / sqrtf(float(target.repeat));
    if (dtype == DType::f32) {
        serve<Shape, 8>(target, staged, factor, DType::f32, n, rows, d);
    } else {
        serve<Shape, 4>(target, staged, factor, dtype, n, rows, d);
    }
}

}  // namespace dfa
