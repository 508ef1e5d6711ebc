// The epilogue of `update`: a gradient's elements are stored, or step their parameter.
#pragma once

#include "element.cuh"
#include "optimizer.cuh"
#include "platform.h"
#include "tables.h"

namespace dfa {

// Up to four adjacent elements of a parameter, and of what has its strides.
struct Place {
    int64_t at;
    int count;
    bool whole;  // four, where they are a vector
};

// Elements as they lie in memory, 16-bit ones in pairs: nothing waits for one load before the next
// is under way.
struct Quad {
    uint32_t word[4];
};

__device__ __forceinline__ uint32_t bits_at(DType type, const void* base, int64_t at) {
    if (type == DType::f32) return static_cast<const uint32_t*>(base)[at];
    return static_cast<const uint16_t*>(base)[at];
}

__device__ __forceinline__ float as_float(DType type, uint32_t bits) {
    if (type == DType::f32) return __uint_as_float(bits);
    return type == DType::bf16 ? unpack_bf16(bits).x : unpack_f16(bits).x;
}

__device__ __forceinline__ Quad load(DType type, const void* base, const Place& place) {
    if (place.whole && type == DType::f32) {
        const uint4 v = *reinterpret_cast<const uint4*>(static_cast<const float*>(base) + place.at);
        return {{v.x, v.y, v.z, v.w}};
    }
    if (place.whole) {
        const uint2 v =
            *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(base) + place.at);
        return {{v.x, v.y}};
    }
    uint32_t bits[4] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if (i < place.count) bits[i] = bits_at(type, base, place.at + i);
    }
    if (type == DType::f32) return {{bits[0], bits[1], bits[2], bits[3]}};
    return {{bits[0] | bits[1] << 16, bits[2] | bits[3] << 16}};
}

__device__ __forceinline__ void unpack(DType type, const Quad& quad, float (&value)[4]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        if (type == DType::f32) {
            value[2 * i] = __uint_as_float(quad.word[2 * i]);
            value[2 * i + 1] = __uint_as_float(quad.word[2 * i + 1]);
        } else {
            const float2 pair =
                type == DType::bf16 ? unpack_bf16(quad.word[i]) : unpack_f16(quad.word[i]);
            value[2 * i] = pair.x, value[2 * i + 1] = pair.y;
        }
    }
}

__device__ __forceinline__ void store(DType type, void* base, const Place& place,
                                      const float (&value)[4]) {
    if (place.whole && type == DType::f32) {
        *reinterpret_cast<float4*>(static_cast<float*>(base) + place.at) =
            make_float4(value[0], value[1], value[2], value[3]);
    } else if (place.whole) {
        const bool bf16 = type == DType::bf16;
        *reinterpret_cast<uint2*>(static_cast<uint16_t*>(base) + place.at) = make_uint2(
            bf16 ? pack_bf16(value[0], value[1]) : pack_f16(value[0], value[1]),
            bf16 ? pack_bf16(value[2], value[3]) : pack_f16(value[2], value[3]));
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (i < place.count) store_element(type, base, place.at + i, value[i]);
        }
    }
}

// The rule's step with `gradient` at COUNT places: all are loaded before the first is stepped.
// `shared`: the hyperparameters, which `store` has none of.
template <int COUNT>
__device__ __forceinline__ void apply(const UpdateTable& table, const Applied& applied,
                                      const Hyper& shared, const Place (&place)[COUNT],
                                      float (&gradient)[COUNT][4]) {
    if (table.rule == Rule::store) {
#pragma unroll
        for (int c = 0; c < COUNT; ++c) {
            store(table.parameter, applied.parameter, place[c], gradient[c]);
        }
        return;
    }
    const Hyper hyper = shared;
    const bool adam = table.rule == Rule::adamw;
    const bool reads = adam || hyper.column[1] != 0.0f;   // sgd: there is a momentum,
    const bool writes = adam || hyper.column[6] != 0.0f;  // or will be
    Quad parameter[COUNT], first[COUNT] = {}, second[COUNT] = {};
#pragma unroll
    for (int c = 0; c < COUNT; ++c) {
        parameter[c] = load(table.parameter, applied.parameter, place[c]);
        if (reads) first[c] = load(table.state, applied.state[0], place[c]);
        if (adam) second[c] = load(table.state, applied.state[1], place[c]);
    }
#pragma unroll
    for (int c = 0; c < COUNT; ++c) {
        float p[4], state[2][4];
        unpack(table.parameter, parameter[c], p);
        unpack(table.state, first[c], state[0]);
        unpack(table.state, second[c], state[1]);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (adam) adamw(p[i], gradient[c][i], state[0][i], state[1][i], hyper);
            else sgd(p[i], gradient[c][i], state[0][i], hyper);
        }
        store(table.parameter, applied.parameter, place[c], p);
        if (writes) store(table.state, applied.state[0], place[c], state[0]);
        if (adam) store(table.state, applied.state[1], place[c], state[1]);
        if (applied.copy) store(table.copy, applied.copy, place[c], p);
    }
}

}  // namespace dfa
