// Elements in memory whose dtype a launch is told: fp32 in registers, one or eight at a time.
#pragma once

#include <cstring>

#include "platform.h"
#include "tables.h"

namespace dfa {

__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    uint32_t word;
    memcpy(&word, &pair, 4);
    return word;
}

__device__ __forceinline__ uint32_t pack_f16(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    uint32_t word;
    memcpy(&word, &pair, 4);
    return word;
}

__device__ __forceinline__ float2 unpack_bf16(uint32_t word) {
    return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xFFFF0000u));
}

__device__ __forceinline__ float2 unpack_f16(uint32_t word) {
    __half2 pair;
    memcpy(&pair, &word, 4);
    return __half22float2(pair);
}

__device__ __forceinline__ float load_element(DType dtype, const void* from, int64_t at) {
    switch (dtype) {
        case DType::bf16: return __bfloat162float(static_cast<const __nv_bfloat16*>(from)[at]);
        case DType::f16: return __half2float(static_cast<const __half*>(from)[at]);
        default: return static_cast<const float*>(from)[at];
    }
}

__device__ __forceinline__ void store_element(DType dtype, void* to, int64_t at, float value) {
    switch (dtype) {
        case DType::bf16: static_cast<__nv_bfloat16*>(to)[at] = __float2bfloat16_rn(value); break;
        case DType::f16: static_cast<__half*>(to)[at] = __float2half_rn(value); break;
        default: static_cast<float*>(to)[at] = value;
    }
}

// Eight adjacent fp32 in shared memory, from an address that is a multiple of 16 bytes.
__device__ __forceinline__ void load_eight(const float* from, float (&value)[8]) {
    const float4 low = reinterpret_cast<const float4*>(from)[0];
    const float4 high = reinterpret_cast<const float4*>(from)[1];
    value[0] = low.x, value[1] = low.y, value[2] = low.z, value[3] = low.w;
    value[4] = high.x, value[5] = high.y, value[6] = high.z, value[7] = high.w;
}

__device__ __forceinline__ void store_eight(float* to, const float (&value)[8]) {
    reinterpret_cast<float4*>(to)[0] = make_float4(value[0], value[1], value[2], value[3]);
    reinterpret_cast<float4*>(to)[1] = make_float4(value[4], value[5], value[6], value[7]);
}

// To global memory, in a dtype.
__device__ __forceinline__ void store_eight(DType dtype, void* to, int64_t at,
                                            const float (&value)[8]) {
    if (dtype == DType::f32) {
        const auto vector = reinterpret_cast<float4*>(static_cast<float*>(to) + at);
        // Not by an assignment, which nvcc may split into words.
        __stwb(vector, make_float4(value[0], value[1], value[2], value[3]));
        __stwb(vector + 1, make_float4(value[4], value[5], value[6], value[7]));
        return;
    }
    uint32_t word[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float low = value[2 * i], high = value[2 * i + 1];
        word[i] = dtype == DType::bf16 ? pack_bf16(low, high) : pack_f16(low, high);
    }
    __stwb(reinterpret_cast<uint4*>(static_cast<uint16_t*>(to) + at),
           make_uint4(word[0], word[1], word[2], word[3]));
}

}  // namespace dfa
