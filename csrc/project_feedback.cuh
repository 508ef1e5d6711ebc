// B's part of a product on tensor cores, made in registers as mma wants its B fragments.
//
// A warp has 64 columns of B, in two halves; their eight n-tiles take them in turns:
//
//     n-tile 4·half + i, its column c   is column   32·half + 8·(c / 2) + 2·i + c % 2
//
// With g = lane / 4 and q = lane % 4, a lane has column c = g of B's fragments and columns c = 2q
// and 2q + 1 of the product's. So of a row of signs it needs one byte, g / 2, of each half's word;
// and of the product it has eight adjacent columns of each half, 8q and on.
//
// A slice is 16 rows of B, of which a lane has four. Each Philox call is made by one lane and goes
// to those that need a part of it by shuffles: a call each for two slices of signs, two for a
// slice of bytes, eight for a slice of normals.
#pragma once

#include "element.cuh"
#include "philox.cuh"
#include "ptx.cuh"

namespace dfa {

// What B is, and where a warp is in it.
struct Feedback {
    Distribution distribution;
    uint64_t seed;
    int32_t stream, rows;  // rows: E
    const void* matrix;    // a user's (rows, columns)
    int64_t columns;
    DType dtype;
    int32_t column;  // the first of the warp's 64
};

// The B fragments of a slice, and how its entries go to their places.
template <Compute compute>
struct Slice {
    static constexpr bool kHalf = compute != Compute::tf32;  // operands of 16 bits
    static constexpr int kProducts = kHalf ? 1 : 2;          // mma's depth is 16, or 8
    static constexpr uint32_t kOne = compute == Compute::f16 ? 0x3C00 : 0x3F80;  // 1's upper half

    uint32_t b[kProducts][8][2];

    // The lane's row i of the slice, 0 … 3: as many as it has in all its fragments.
    static __device__ __forceinline__ int row(int i) {
        const int q = threadIdx.x % 4;
        return kHalf ? 2 * q + i % 2 + i / 2 * 8 : q + 4 * i;
    }

    // The entries of rows 2·pair and 2·pair + 1.
    __device__ __forceinline__ void put(int tile, int pair, float even, float odd) {
        if constexpr (compute == Compute::bf16) b[0][tile][pair] = pack_bf16(even, odd);
        if constexpr (compute == Compute::f16) b[0][tile][pair] = pack_f16(even, odd);
        if constexpr (compute == Compute::tf32) {
            b[pair][tile][0] = cvt_tf32(even);
            b[pair][tile][1] = cvt_tf32(odd);
        }
    }

    // The same of signs: the one's is bit 15 of `signs`, the other's bit 31; a bit says +1.
    __device__ __forceinline__ void put_signs(int tile, int pair, uint32_t signs) {
        constexpr uint32_t kMinus = 0x8000 | kOne;
        if constexpr (kHalf) {
            b[0][tile][pair] = (signs & 0x80008000u) ^ (kMinus << 16 | kMinus);
        } else {
            b[pair][tile][0] = (signs << 16 & 0x80000000u) ^ kMinus << 16;
            b[pair][tile][1] = (signs & 0x80000000u) ^ kMinus << 16;
        }
    }

    __device__ __forceinline__ void signs(uint32_t bits);
    __device__ __forceinline__ void bytes(const Feedback& feedback, int k0);
    __device__ __forceinline__ void normals(const Feedback& feedback, int k0);
    __device__ __forceinline__ void given(const Feedback& feedback, int k0);
};

// ±1 of two slices, from k0 on: the lane's row is k0 + lane. Of a row and the warp's words u and v
// it keeps the bytes (u0 v0 u1 v1), and sends (u2 v2 u3 v3) to the lane of the other slice.
// After that, `bits[s]` of lane r + 16·upper are the lower or upper bytes of row r of slice s.
__device__ __forceinline__ void sign_bits(const Feedback& feedback, int k0, uint32_t (&bits)[2]) {
    const int lane = threadIdx.x % 32;
    const Words words = words_of(feedback.seed, feedback.stream, k0 + lane, feedback.column / 128);
    const bool right = feedback.column & 64;
    const uint32_t u = right ? words.word[2] : words.word[0];
    const uint32_t v = right ? words.word[3] : words.word[1];
    const uint32_t lower = __byte_perm(u, v, 0x5140), upper = __byte_perm(u, v, 0x7362);
    const uint32_t come = __shfl_xor_sync(~0u, lane < 16 ? upper : lower, 16);
    bits[0] = lane < 16 ? lower : come;
    bits[1] = lane < 16 ? come : upper;
}

template <Compute compute>
__device__ __forceinline__ void Slice<compute>::signs(uint32_t bits) {
    const int g = threadIdx.x / 4 % 8;
    uint32_t mine[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) mine[i] = __shfl_sync(~0u, bits, row(i) + g / 4 * 16);
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
        // Byte g / 2 of both halves' words: of the even row in the low 16 bits, of the odd above.
        uint32_t both = __byte_perm(mine[2 * pair], mine[2 * pair + 1], g & 2 ? 0x7632 : 0x5410);
        both <<= 1 - g % 2;
#pragma unroll
        for (int tile = 0; tile < 8; ++tile) put_signs(tile, pair, both << (14 - 2 * tile));
    }
}

// (2·byte − 255) / 256. Lanes of the same q and g / 4 need the same calls: each makes those of one
// of their four rows, and gives every other lane the four bytes that it needs of each.
template <Compute compute>
__device__ __forceinline__ void Slice<compute>::bytes(const Feedback& feedback, int k0) {
    const int g = threadIdx.x / 4 % 8, turn = g % 4;
    int k = k0;
#pragma unroll
    for (int i = 0; i < 4; ++i) k += i == turn ? row(i) : 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int block = feedback.column / 16 + 2 * half + g / 4;
        const Words words = words_of(feedback.seed, feedback.stream, k, block);
        uint32_t part[4];  // for the lane of turn i; after the exchange, of row i
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const uint32_t low = words.word[i / 2 * 2], high = words.word[i / 2 * 2 + 1];
            part[i] = __byte_perm(low, high, i % 2 ? 0x7531 : 0x6420);
        }
#pragma unroll
        for (int bit = 1; bit <= 2; bit *= 2) {  // transposes part over turn
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                if (i & bit) continue;
                const bool odd = turn & bit;
                const uint32_t come =
                    __shfl_xor_sync(~0u, odd ? part[i] : part[i + bit], 4 * bit);
                part[i] = odd ? come : part[i];
                part[i + bit] = odd ? part[i + bit] : come;
            }
        }
#pragma unroll
        for (int tile = 0; tile < 4; ++tile) {
            // A byte in the mantissa of 2¹⁵: 32768 + byte, without a conversion.
            const uint32_t place = 0x7404 | tile << 4;
            float entry[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float raised = __uint_as_float(__byte_perm(part[i], 0x47000000u, place));
                entry[i] = fmaf(raised, 0.0078125f, -256.99609375f);
            }
            put(4 * half + tile, 0, entry[0], entry[1]);
            put(4 * half + tile, 1, entry[2], entry[3]);
        }
    }
}

// Lanes g and g ^ 1 need the even and the odd entries of the same calls: each makes half of them.
template <Compute compute>
__device__ __forceinline__ void Slice<compute>::normals(const Feedback& feedback, int k0) {
    const int g = threadIdx.x / 4 % 8;
    const bool odd = g & 1;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int block = feedback.column / 4 + 8 * half + g / 2 * 2 + odd;
#pragma unroll
        for (int pair = 0; pair < 2; ++pair) {
            float entry[2][4];  // of the even and the odd row, by n-tile
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int k = k0 + row(2 * pair + i);
                float z[4];
                normal(words_of(feedback.seed, feedback.stream, k, block), z);
                const float come0 = __shfl_xor_sync(~0u, odd ? z[0] : z[1], 4);
                const float come1 = __shfl_xor_sync(~0u, odd ? z[2] : z[3], 4);
                entry[i][0] = odd ? come0 : z[0];
                entry[i][1] = odd ? come1 : z[2];
                entry[i][2] = odd ? z[1] : come0;
                entry[i][3] = odd ? z[3] : come1;
            }
#pragma unroll
            for (int tile = 0; tile < 4; ++tile) {
                put(4 * half + tile, pair, entry[0][tile], entry[1][tile]);
            }
        }
    }
}

// A user's B, zeros outside.
template <Compute compute>
__device__ __forceinline__ void Slice<compute>::given(const Feedback& feedback, int k0) {
    const int g = threadIdx.x / 4 % 8;
#pragma unroll
    for (int tile = 0; tile < 8; ++tile) {
        const int d = feedback.column + tile / 4 * 32 + g / 2 * 8 + tile % 4 * 2 + g % 2;
        float entry[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int k = k0 + row(i);
            const bool inside = k < feedback.rows && d < feedback.columns;
            const int64_t at = k * feedback.columns + d;
            entry[i] = inside ? load_element(feedback.dtype, feedback.matrix, at) : 0.0f;
        }
        put(tile, 0, entry[0], entry[1]);
        put(tile, 1, entry[2], entry[3]);
    }
}

}  // namespace dfa
