// The epilogue of `update`: a gradient's elements are stored, or step their parameter.
#pragma once

#include <cstring>

#include "optimizer.cuh"
#include "platform.h"
#include "tables.h"

namespace dfa {

// Numbers of any type, as bits.

__device__ __forceinline__ uint32_t bits_at(const void* base, DType type, int64_t at) {
    if (type == DType::f32) return static_cast<const uint32_t*>(base)[at];
    return static_cast<const uint16_t*>(base)[at];
}

__device__ __forceinline__ float as_float(uint32_t bits, DType type) {
    if (type == DType::f32) return __uint_as_float(bits);
    if (type == DType::bf16) return __uint_as_float(bits << 16);
    const uint16_t low = static_cast<uint16_t>(bits);
    __half half;
    memcpy(&half, &low, sizeof low);
    return __half2float(half);
}

__device__ __forceinline__ uint32_t as_bits(float value, DType type) {
    if (type == DType::f32) return __float_as_uint(value);
    uint16_t bits;
    if (type == DType::bf16) {
        const __nv_bfloat16 rounded = __float2bfloat16_rn(value);
        memcpy(&bits, &rounded, sizeof bits);
    } else {
        const __half rounded = __float2half_rn(value);
        memcpy(&bits, &rounded, sizeof bits);
    }
    return bits;
}

// Up to four adjacent elements of a parameter, and of what has its strides.
struct Place {
    int64_t at;
    int count;
    bool whole;  // four, where they are a vector
};

// Loads leave the bits as they are: nothing waits for one before the next is under way.
struct Quad {
    uint32_t word[4];
};

__device__ __forceinline__ Quad load(const void* base, DType type, const Place& place) {
    Quad quad = {};
    if (place.whole && type == DType::f32) {
        const uint4 v = *reinterpret_cast<const uint4*>(static_cast<const float*>(base) + place.at);
        quad = {{v.x, v.y, v.z, v.w}};
    } else if (place.whole) {
        const uint2 v =
            *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(base) + place.at);
        quad = {{v.x & 0xFFFF, v.x >> 16, v.y & 0xFFFF, v.y >> 16}};
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (i < place.count) quad.word[i] = bits_at(base, type, place.at + i);
        }
    }
    return quad;
}

__device__ __forceinline__ void store(void* base, DType type, const Place& place,
                                      const float (&value)[4]) {
    uint32_t word[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) word[i] = as_bits(value[i], type);
    if (place.whole && type == DType::f32) {
        *reinterpret_cast<uint4*>(static_cast<float*>(base) + place.at) =
            make_uint4(word[0], word[1], word[2], word[3]);
    } else if (place.whole) {
        *reinterpret_cast<uint2*>(static_cast<uint16_t*>(base) + place.at) =
            make_uint2(word[0] | word[1] << 16, word[2] | word[3] << 16);
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (i >= place.count) continue;
            if (type == DType::f32) static_cast<uint32_t*>(base)[place.at + i] = word[i];
            else static_cast<uint16_t*>(base)[place.at + i] = static_cast<uint16_t>(word[i]);
        }
    }
}

// The rule's step with `gradient` at COUNT places: all are loaded before the first is stepped.
template <int COUNT>
__device__ __forceinline__ void apply(const UpdateTable& table, const Applied& applied,
                                      const Place (&place)[COUNT], float (&gradient)[COUNT][4]) {
    if (table.rule == Rule::store) {
#pragma unroll
        for (int c = 0; c < COUNT; ++c) {
            store(applied.parameter, table.parameter, place[c], gradient[c]);
        }
        return;
    }
    Hyper hyper;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) hyper.column[i] = table.hyper[applied.row][i];
    const bool adam = table.rule == Rule::adamw;
    const bool reads = adam || hyper.column[1] != 0.0f;   // sgd: there is a momentum,
    const bool writes = adam || hyper.column[6] != 0.0f;  // or will be
    Quad parameter[COUNT], first[COUNT] = {}, second[COUNT] = {};
#pragma unroll
    for (int c = 0; c < COUNT; ++c) {
        parameter[c] = load(applied.parameter, table.parameter, place[c]);
        if (reads) first[c] = load(applied.state[0], table.state, place[c]);
        if (adam) second[c] = load(applied.state[1], table.state, place[c]);
    }
#pragma unroll
    for (int c = 0; c < COUNT; ++c) {
        float p[4], state[2][4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            p[i] = as_float(parameter[c].word[i], table.parameter);
            state[0][i] = as_float(first[c].word[i], table.state);
            state[1][i] = as_float(second[c].word[i], table.state);
            if (adam) adamw(p[i], gradient[c][i], state[0][i], state[1][i], hyper);
            else sgd(p[i], gradient[c][i], state[0][i], hyper);
        }
        store(applied.parameter, table.parameter, place[c], p);
        if (writes) store(applied.state[0], table.state, place[c], state[0]);
        if (adam) store(applied.state[1], table.state, place[c], state[1]);
        if (applied.copy) store(applied.copy, table.copy, place[c], p);
    }
}

}  // namespace dfa
