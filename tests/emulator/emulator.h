// What a kernel sees where g++ compiles it for the CPU: CUDA's names, over emulator.cpp.
//
// Each CUDA thread of a block is a fiber; barriers and warp operations switch between them. Shared
// memory begins as NaN, asynchronous copies land when they are waited for, and whatever hardware
// would answer with undefined behaviour ends the launch with one sentence that names the line.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <type_traits>

#include "numbers.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define DFA_TABLE(type) const type&
#define DFA_SHARED(name) \
    unsigned char* const name = static_cast<unsigned char*>(dfa::emulator::shared_memory())

#define threadIdx (dfa::emulator::self->thread)
#define blockIdx (dfa::emulator::self->block)
#define blockDim (dfa::emulator::self->threads)
#define gridDim (dfa::emulator::self->blocks)

namespace dfa {

using Error = const char*;  // a sentence, good until this OS thread's next launch
using Stream = void*;
constexpr Error kSuccess = nullptr, kInvalidValue = "invalid value";

inline const char* error_name(Error error) { return error ? "EmulatorError" : "success"; }
inline const char* error_text(Error error) { return error ? error : "no error"; }
inline Error current_device(int* device) { return *device = 0, kSuccess; }
constexpr int kRuntimeVersion = 0;
inline int driver_version() { return 0; }
inline Error use_device(int device) { return device == 0 ? kSuccess : "there is no such device"; }

namespace emulator {

using Where = std::source_location;

struct Thread {  // what a kernel can ask of the thread that runs it
    uint3 thread, block;
    dim3 threads, blocks;
    int lane, warp;
};
inline constinit thread_local Thread* self = nullptr;

void* shared_memory();
bool block_barrier(bool predicate, Where where);  // whether the predicate held for any thread

// Waits for every lane of `mask`; the last to come calls `all` with what each brought.
using ForAll = void (*)(void** lanes, uint32_t mask);
void warp_meeting(uint32_t mask, void* mine, ForAll all, Where where);

void fence();                         // __threadfence
int atomic_add(int* at, int value);  // the value before
Error run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel);

template <class T>
T shuffle(uint32_t mask, T value, int from, Where where) {
    struct Mine {
        T in, out;
        int from;
    } mine{value, value, from};
    warp_meeting(mask, &mine, [](void** lanes, uint32_t mask) {
        for (int lane = 0; lane < 32; ++lane) {
            if (!(mask >> lane & 1)) continue;
            Mine* me = static_cast<Mine*>(lanes[lane]);
            if (mask >> me->from & 1) me->out = static_cast<Mine*>(lanes[me->from])->in;
            else std::memset(static_cast<void*>(&me->out), 0xFF, sizeof(T));
        }
    }, where);
    return mine.out;
}

inline uint32_t ballot(uint32_t mask, bool predicate, Where where) {
    struct Mine {
        bool in;
        uint32_t out;
    } mine{predicate, 0};
    warp_meeting(mask, &mine, [](void** lanes, uint32_t mask) {
        uint32_t votes = 0;
        for (int lane = 0; lane < 32; ++lane)
            if (mask >> lane & 1 && static_cast<Mine*>(lanes[lane])->in) votes |= 1u << lane;
        for (int lane = 0; lane < 32; ++lane)
            if (mask >> lane & 1) static_cast<Mine*>(lanes[lane])->out = votes;
    }, where);
    return mine.out;
}

}  // namespace emulator

template <class... P>
Error launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, Stream,
             const std::decay_t<P>&... arguments) {
    return emulator::run(grid, block, shared_bytes, [&] { kernel(arguments...); });
}

// The instructions of ptx.cuh.
void cp_async_16(void* to, const void* from, int bytes = 16,
                 emulator::Where where = emulator::Where::current());
void cp_async_commit();
void cp_async_wait(int left);
template <int left>
void cp_async_wait() { cp_async_wait(left); }
void ldmatrix_x4(uint32_t (&r)[4], const void* row,
                 emulator::Where where = emulator::Where::current());
void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row,
                       emulator::Where where = emulator::Where::current());
void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                       emulator::Where where = emulator::Where::current());
void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                      emulator::Where where = emulator::Where::current());
void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                      emulator::Where where = emulator::Where::current());
inline uint32_t cvt_tf32(float value) {
    const uint32_t word = __float_as_uint(value);
    return (word & 0x7F800000) == 0x7F800000 ? word : (word + 0x1000) & ~0x1FFFu;
}

}  // namespace dfa

inline void __syncthreads(dfa::emulator::Where where = dfa::emulator::Where::current()) {
    dfa::emulator::block_barrier(false, where);
}
inline int __syncthreads_or(int predicate,
                            dfa::emulator::Where where = dfa::emulator::Where::current()) {
    return dfa::emulator::block_barrier(predicate != 0, where);
}
inline void __syncwarp(uint32_t mask = ~0u,
                       dfa::emulator::Where where = dfa::emulator::Where::current()) {
    dfa::emulator::warp_meeting(mask, nullptr, nullptr, where);
}
template <class T>
T __shfl_sync(uint32_t mask, T value, int from, int width = 32,
              dfa::emulator::Where where = dfa::emulator::Where::current()) {
    const int lane = dfa::emulator::self->lane;
    return dfa::emulator::shuffle(mask, value, (lane & -width) | (from & (width - 1)), where);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int bits,
                  dfa::emulator::Where where = dfa::emulator::Where::current()) {
    return dfa::emulator::shuffle(mask, value, (dfa::emulator::self->lane ^ bits) & 31, where);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, int by,
                   dfa::emulator::Where where = dfa::emulator::Where::current()) {
    const int lane = dfa::emulator::self->lane;
    return dfa::emulator::shuffle(mask, value, lane + by > 31 ? lane : lane + by, where);
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate,
                              dfa::emulator::Where where = dfa::emulator::Where::current()) {
    return dfa::emulator::ballot(mask, predicate != 0, where);
}

inline void __threadfence() { dfa::emulator::fence(); }
inline int atomicAdd(int* at, int value) { return dfa::emulator::atomic_add(at, value); }

template <class T>
T __ldg(const T* from) { return *from; }
template <class T>
void __stwb(T* to, T value) { *to = value; }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<uint64_t>(a) * b >> 32; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned places) {
    const uint64_t bytes = static_cast<uint64_t>(y) << 32 | x;
    unsigned word = 0;
    for (int i = 0; i < 4; ++i) word |= (bytes >> 8 * (places >> 4 * i & 7) & 0xFF) << 8 * i;
    return word;
}
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline void __sincosf(float x, float* s, float* c) { *s = sinf(x), *c = cosf(x); }
inline float sinpif(float x) { return static_cast<float>(sin(M_PI * x)); }
inline float cospif(float x) { return static_cast<float>(cos(M_PI * x)); }
inline void sincospif(float x, float* s, float* c) { *s = sinpif(x), *c = cospif(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
template <class A, class B>
std::common_type_t<A, B> min(A a, B b) { return b < a ? b : a; }
template <class A, class B>
std::common_type_t<A, B> max(A a, B b) { return a < b ? b : a; }
