// The one place that knows whether a kernel is compiled by nvcc for a GPU or by g++ for the CPU.
//
// A build that has tests/emulator among its include directories is for the CPU: there
// `emulator.h` defines the same names over fibers, and this header adds nothing.
//
//     __global__ void __launch_bounds__(128) scale(float* x, DFA_TABLE(Table) table) {
//         DFA_SHARED(raw);  // dynamic shared memory, the only kind: unsigned char*, 128-byte aligned
//         float* tile = reinterpret_cast<float*>(raw);
//         …
//     }
//     dfa::Error error = dfa::launch(scale, blocks, 128, bytes, stream, x, table);
//     if (error != dfa::kSuccess) …
#pragma once

#include <cstddef>
#include <cstdint>

#if __has_include("emulator.h")
#include "emulator.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <type_traits>

#ifdef __CUDACC__
#define DFA_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
// A parameter that is read where the launch left it, without a copy a thread.
#define DFA_TABLE(type) const __grid_constant__ type
#endif

namespace dfa {

using Error = cudaError_t;
using Stream = cudaStream_t;
constexpr Error kSuccess = cudaSuccess, kInvalidValue = cudaErrorInvalidValue;

inline const char* error_name(Error error) { return cudaGetErrorName(error); }
inline const char* error_text(Error error) { return cudaGetErrorString(error); }
inline Error current_device(int* device) { return cudaGetDevice(device); }
inline Error use_device(int device) { return cudaSetDevice(device); }

// As 1000 · major + 10 · minor: of this build, and the newest that the driver runs, 0 without one.
constexpr int kRuntimeVersion = CUDART_VERSION;
inline int driver_version() {
    int version = 0;
    return cudaDriverGetVersion(&version) == kSuccess ? version : 0;
}

constexpr size_t kSharedWithoutAsking = 48 * 1024;

// Arguments go by address: the runtime copies them once, into the launch.
template <class... P>
Error launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream,
             const std::decay_t<P>&... arguments) {
    const void* function = reinterpret_cast<const void*>(kernel);
    if (shared_bytes > kSharedWithoutAsking) {
        const Error error = cudaFuncSetAttribute(
            function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
        if (error != kSuccess) return error;
    }
    void* addresses[] = {const_cast<void*>(static_cast<const void*>(&arguments))...};
    return cudaLaunchKernel(function, grid, block, addresses, shared_bytes, stream);
}

}  // namespace dfa

#endif
