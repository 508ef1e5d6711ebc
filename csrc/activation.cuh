// g ⊙ f′ in registers, by the codes of dfa_kernels.activation, in fp32.
//
// `s` is what the forward pass kept: the outputs h, or the preactivations a for gelu and silu. The
// forms are PyTorch's, so that NaN and Inf go the same ways.
#pragma once

#include "platform.h"
#include "tables.h"

namespace dfa {

__device__ __forceinline__ float sigmoid(float a) { return __fdividef(1.0f, 1.0f + expf(-a)); }

// Φ(a) + a·φ(a).
__device__ __forceinline__ float gelu_slope(float a) {
    const float cdf = 0.5f * (1.0f + erff(a * 0.70710678118654752f));
    return cdf + a * expf(-0.5f * a * a) * 0.39894228040143268f;
}

// Of ½·a·(1 + tanh(√(2/π)·(a + 0.044715·a³))).
__device__ __forceinline__ float gelu_tanh_slope(float a) {
    const float t = tanhf(0.79788456080286536f * (a + 0.044715f * a * a * a));
    const float slope = 0.79788456080286536f * (1.0f + 0.134145f * a * a);
    return 0.5f * (1.0f + t) + 0.5f * a * (1.0f - t * t) * slope;
}

// σ(a)·(1 + a·(1 − σ(a))).
__device__ __forceinline__ float silu_slope(float a) {
    const float y = sigmoid(a);
    return y * (1.0f + a * (1.0f - y));
}

// g ← g ⊙ f′(s) of COUNT elements: one branch for all of them.
template <int COUNT>
__device__ __forceinline__ void derivative(Activation activation, float (&g)[COUNT],
                                           const float (&s)[COUNT]) {
    const auto each = [&](auto of_one) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) g[i] = of_one(g[i], s[i]);
    };
    switch (activation) {
        case Activation::identity: return;
        case Activation::relu: return each([](float g, float h) { return h <= 0.0f ? 0.0f : g; });
        case Activation::tanh: return each([](float g, float h) { return g * (1.0f - h * h); });
        case Activation::sigmoid:
            return each([](float g, float h) { return g * ((1.0f - h) * h); });
        case Activation::gelu: return each([](float g, float a) { return g * gelu_slope(a); });
        case Activation::gelu_tanh:
            return each([](float g, float a) { return g * gelu_tanh_slope(a); });
        case Activation::silu: return each([](float g, float a) { return g * silu_slope(a); });
    }
}

// g ⊙ f′(s) of one element.
__device__ __forceinline__ float derivative(Activation activation, float g, float s) {
    float one[1] = {g};
    const float saved[1] = {s};
    derivative(activation, one, saved);
    return one[0];
}

}  // namespace dfa
