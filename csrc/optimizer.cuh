// The optimizers' steps in registers: `torch.optim`'s semantics in fp32, an element at a time.
//
// A row of hyperparameters is described in tables.h; what depends on the step count alone was
// computed once, in fp64, on the host.
#pragma once

#include "platform.h"
#include "tables.h"

namespace dfa {

struct Hyper {
    float column[kColumns];
};

// buf ← μ·buf + (1−τ)·(g + λ·p),  p ← p − γ·buf  (Nesterov: p ← p − γ·(g + λ·p + μ·buf)).
__device__ __forceinline__ void sgd(float& p, float g, float& buffer, const Hyper& hyper) {
    const auto& [lr, momentum, gain, decay, nesterov, sign, buffered] = hyper.column;
    g = sign * g + decay * p;
    // At the first step what lies in the buffer has no meaning, and may be NaN.
    buffer = (momentum == 0.0f ? 0.0f : momentum * buffer) + gain * g;
    const float direction = nesterov == 0.0f ? buffer : g + nesterov * buffer;
    p -= lr * (buffered == 0.0f ? g : direction);
}

// Loshchilov & Hutter 2019, algorithm 2: decoupled decay, bias-corrected moments.
__device__ __forceinline__ void adamw(float& p, float g, float& mean, float& square,
                                      const Hyper& hyper) {
    const auto& [shrink, rate1, beta2, rate2, eps, step_size, correction] = hyper.column;
    mean += fabsf(rate1) * ((rate1 < 0.0f ? -g : g) - mean);
    square = beta2 * square + rate2 * g * g;
    p = p * shrink - step_size * mean / (sqrtf(square) * correction + eps);
}

}  // namespace dfa
