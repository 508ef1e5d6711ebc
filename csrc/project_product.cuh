// e·B of a tile, accumulated in fp32 registers: e through shared memory, B in registers.
#pragma once

#include "project_feedback.cuh"
#include "ptx.cuh"

namespace dfa {

template <Compute>
struct ProjectOperand {
    using Type = float;
    static constexpr DType kDType = DType::f32;
    static constexpr int kStages = 3;
};
template <>
struct ProjectOperand<Compute::bf16> {
    using Type = __nv_bfloat16;
    static constexpr DType kDType = DType::bf16;
    static constexpr int kStages = 4;
};
template <>
struct ProjectOperand<Compute::f16> {
    using Type = __half;
    static constexpr DType kDType = DType::f16;
    static constexpr int kStages = 4;
};

// A program makes kN × 128 of e·B with 2 × 2 warps of kTiles·16 × 64, 32 columns of e at a time.
template <Compute compute, bool large>
struct ProjectShape {
    using Element = typename ProjectOperand<compute>::Type;
    static constexpr DType kDType = ProjectOperand<compute>::kDType;
    static constexpr int kTiles = large ? 4 : 1, kRows = 16 * kTiles;  // of a warp
    static constexpr int kN = 2 * kRows, kD = 128, kK = 32, kThreads = 128;
    static constexpr int kBlocks = large ? 2 : 3;  // a multiprocessor, by their registers
    // Of eight elements that f′ is read from: what a thread has on its way beside its product.
    static constexpr int kAhead = sizeof(Element) == 2 ? 8 : 4;
    static constexpr int kAheadOfFloats = sizeof(Element) == 2 ? 1 : 2;
    static constexpr int kStages = ProjectOperand<compute>::kStages;
    // Rows of e a vector longer than they need: eight of them, 16 bytes each, lie in all banks.
    static constexpr int kVector = 16 / sizeof(Element), kPitch = kK + kVector;
    static constexpr int kStage = kN * kPitch;
    // B's tile, fp32 without tensor cores. The pitch does the same there.
    static constexpr int kPitchB = kD + 4;
    static constexpr int kErrorBytes = kStages * kStage * sizeof(Element);
    static constexpr int kFeedbackBytes = compute == Compute::f32 ? kK * kPitchB * 4 : 0;
};

// Starts copying columns k0 … k0 + 31 of a tile's rows, zeros outside. What is not of the operand's
// dtype, or not of whole vectors, is copied at once, rounded to it.
template <class Shape>
__device__ __forceinline__ void copy_error(typename Shape::Element* tile, const ProjectGroup& group,
                                           DType dtype, int n0, int k0) {
    using Element = typename Shape::Element;
    if (dtype == Shape::kDType && group.aligned) {
        constexpr int kVectors = Shape::kK / Shape::kVector;
        const Element* error = static_cast<const Element*>(group.error);
#pragma unroll
        for (int i = 0; i < Shape::kN * kVectors / Shape::kThreads; ++i) {
            const int index = threadIdx.x + i * Shape::kThreads;
            const int row = index / kVectors, k = index % kVectors * Shape::kVector;
            const bool inside = n0 + row < group.rows && k0 + k < group.error_width;
            const Element* from = error + (n0 + row) * group.error_stride + k0 + k;
            cp_async_16(tile + row * Shape::kPitch + k, inside ? from : error, inside ? 16 : 0);
        }
        return;
    }
    const int k = threadIdx.x % Shape::kK;
    for (int row = threadIdx.x / Shape::kK; row < Shape::kN; row += Shape::kThreads / Shape::kK) {
        const bool inside = n0 + row < group.rows && k0 + k < group.error_width;
        const int64_t at = (n0 + row) * group.error_stride + k0 + k;
        const float value = inside ? load_element(dtype, group.error, at) : 0.0f;
        tile[row * Shape::kPitch + k] = Element(value);
    }
}

// The product of a warp: row 16·i + g + 8·(r / 2) of its kRows, and in n-tile t = 4·half + j
// column 32·half + 8·q + 2·j + r % 2 of its 64 (project_feedback.cuh), with g = lane / 4 and
// q = lane % 4.
template <Compute compute, class Shape>
struct Product {
    float sum[Shape::kTiles][8][4];

    __device__ __forceinline__ Product() {
#pragma unroll
        for (int i = 0; i < Shape::kTiles; ++i) {
#pragma unroll
            for (int t = 0; t < 8; ++t) {
#pragma unroll
                for (int r = 0; r < 4; ++r) sum[i][t][r] = 0.0f;
            }
        }
    }

    // Adds 32 columns of e, from k0 on, by as many rows of B. `error`: the warp's rows of the tile.
    __device__ __forceinline__ void add(const typename Shape::Element* error,
                                        const Feedback& feedback, int k0) {
        uint32_t bits[2] = {0, 0};
        if (feedback.distribution == Distribution::rademacher) sign_bits(feedback, k0, bits);
#pragma unroll 1
        for (int s = 0; s < 2 && k0 < feedback.rows; ++s, k0 += 16) {
            Slice<compute> slice;
            switch (feedback.distribution) {
                case Distribution::rademacher: slice.signs(s ? bits[1] : bits[0]); break;
                case Distribution::uniform: slice.bytes(feedback, k0); break;
                case Distribution::normal: slice.normals(feedback, k0); break;
                case Distribution::matrix: slice.given(feedback, k0); break;
            }
            add_slice(error + 16 * s, slice);
        }
    }

    __device__ __forceinline__ void add_slice(const typename Shape::Element* error,
                                              const Slice<compute>& slice) {
        const int lane = threadIdx.x % 32;
        error += lane % 16 * Shape::kPitch + lane / 16 * Shape::kVector;
#pragma unroll
        for (int p = 0; p < Slice<compute>::kProducts; ++p) {
#pragma unroll
            for (int i = 0; i < Shape::kTiles; ++i) {
                uint32_t a[4];
                ldmatrix_x4(a, error + 16 * i * Shape::kPitch + 8 * p);
                if constexpr (compute == Compute::tf32) {
#pragma unroll
                    for (int r = 0; r < 4; ++r) a[r] = cvt_tf32(__uint_as_float(a[r]));
                }
#pragma unroll
                for (int t = 0; t < 8; ++t) {
                    if constexpr (compute == Compute::bf16)
                        mma_m16n8k16_bf16(sum[i][t], a, slice.b[p][t]);
                    if constexpr (compute == Compute::f16)
                        mma_m16n8k16_f16(sum[i][t], a, slice.b[p][t]);
                    if constexpr (compute == Compute::tf32)
                        mma_m16n8k8_tf32(sum[i][t], a, slice.b[p][t]);
                }
            }
        }
    }

    // The same on FMA units, B's tile (32, 128) in shared memory: from the warp's first column on.
    __device__ __forceinline__ void add_scalar(const float* error, const float* b) {
        const int g = threadIdx.x / 4 % 8, q = threadIdx.x % 4;
        error += g * Shape::kPitch;
        b += 8 * q;
#pragma unroll 1
        for (int k = 0; k < Shape::kK; k += 4) {
            float a[2 * Shape::kTiles][4];
#pragma unroll
            for (int i = 0; i < 2 * Shape::kTiles; ++i) {
                const float* from = error + 8 * i * Shape::kPitch + k;
                const float4 four = *reinterpret_cast<const float4*>(from);
                a[i][0] = four.x, a[i][1] = four.y, a[i][2] = four.z, a[i][3] = four.w;
            }
#pragma unroll
            for (int j = 0; j < 4; ++j) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    float row[8];
                    load_eight(b + (k + j) * Shape::kPitchB + 32 * half, row);
#pragma unroll
                    for (int i = 0; i < 2 * Shape::kTiles; ++i) {
#pragma unroll
                        for (int c = 0; c < 8; ++c) {
                            float& one = sum[i / 2][4 * half + c / 2][2 * (i % 2) + c % 2];
                            one = fmaf(a[i][j], row[c], one);
                        }
                    }
                }
            }
        }
    }
};

// Rows k0 … k0 + 31 and 128 columns of B to shared memory, in fp32; a user's: zeros outside.
template <class Shape>
__device__ __forceinline__ void make_feedback(float* tile, const Feedback& feedback, int k0) {
    const int row = threadIdx.x / 4, k = k0 + row;
#pragma unroll 2  // all four at once take registers that spill on sm_100 and sm_120
    for (int i = 0; i < Shape::kD / 32; ++i) {
        const int column = 32 * i + threadIdx.x % 4 * 8, d = feedback.column + column;
        float entry[8];
        if (feedback.distribution == Distribution::matrix) {
#pragma unroll
            for (int c = 0; c < 8; ++c) {
                const bool inside = k < feedback.rows && d + c < feedback.columns;
                const int64_t at = k * feedback.columns + d + c;
                entry[c] = inside ? load_element(feedback.dtype, feedback.matrix, at) : 0.0f;
            }
        } else {
            entries_of(feedback.distribution, feedback.seed, feedback.stream, k, d, entry);
        }
        store_eight(tile + row * Shape::kPitchB + column, entry);
    }
}

// The loop over E: copies of e run kStages − 1 tiles ahead.
template <Compute compute, class Shape>
__device__ __forceinline__ void multiply(Product<compute, Shape>& product, unsigned char* shared,
                                         const ProjectGroup& group, DType dtype,
                                         const Feedback& feedback, int n0) {
    using Element = typename Shape::Element;
    constexpr int kAhead = Shape::kStages - 1;
    Element* const tiles = reinterpret_cast<Element*>(shared);
    const int warp = threadIdx.x / 32;
    const int steps = (group.error_width + Shape::kK - 1) / Shape::kK;
#pragma unroll 1
    for (int step = -kAhead; step < steps; ++step) {
        if (step >= 0) {
            cp_async_wait<kAhead - 1>();
            __syncthreads();  // the tile of this step is there, and that of the last is done with
        }
        const int next = step + kAhead;
        if (next < steps) {
            Element* const tile = tiles + next % Shape::kStages * Shape::kStage;
            copy_error<Shape>(tile, group, dtype, n0, next * Shape::kK);
        }
        cp_async_commit();
        if (step < 0) continue;
        const Element* const error = tiles + step % Shape::kStages * Shape::kStage +
                                     warp / 2 * Shape::kRows * Shape::kPitch;
        if constexpr (compute == Compute::f32) {
            float* const b = reinterpret_cast<float*>(shared + Shape::kErrorBytes);
            make_feedback<Shape>(b, feedback, step * Shape::kK);
            __syncthreads();
            product.add_scalar(error, b + warp % 2 * 64);
        } else {
            product.add(error, feedback, step * Shape::kK);
        }
    }
    cp_async_wait<0>();
    __syncthreads();  // the shared memory is free
}

}  // namespace dfa
