// The optimizers' steps in registers: `torch.optim`'s semantics in fp32, an element at a time.
//
// A row of hyperparameters is described in tables.h; what depends on the step count alone was
// computed once, in fp64, on the host. Of a row in memory a thread of each program computes it, in
// fp64 too: 1 − βᵗ in fp32 is wrong in its fourth digit where β is 0.999 and t is 1.
#pragma once

#include "platform.h"
#include "tables.h"

namespace dfa {

struct Hyper {
    float column[kColumns];
};

// baseᵗ by squaring, for a count t.
__device__ __forceinline__ double power(double base, double t) {
    double made = 1;
    for (uint32_t bits = static_cast<uint32_t>(t); bits != 0; bits >>= 1, base *= base) {
        if (bits & 1) made *= base;
    }
    return made;
}

// Of a row of contract.RULES. `buffered`: there is a momentum buffer to read and to write.
__device__ __forceinline__ Hyper columns_of(Rule rule, const double* row, bool buffered) {
    const double lr = row[0], sign = row[5] != 0 ? -1 : 1;
    if (rule == Rule::sgd) {
        const double momentum = buffered ? row[1] : 0, dampening = row[2], decay = row[3];
        const bool nesterov = row[4] != 0, first = row[6] != 0;
        return {{float(lr), first ? 0.0f : float(momentum), first ? 1.0f : float(1 - dampening),
                 float(decay), nesterov ? float(momentum) : 0.0f, float(sign),
                 momentum != 0 ? 1.0f : 0.0f}};
    }
    const double beta1 = row[1], beta2 = row[2], eps = row[3], decay = row[4], step = row[6];
    return {{float(1 - lr * decay), float(sign * (1 - beta1)), float(beta2), float(1 - beta2),
             float(eps), float(lr / (1 - power(beta1, step))),
             float(1 / sqrt(1 - power(beta2, step)))}};
}

__device__ __forceinline__ Hyper hyper_of(const UpdateTable& table, const Applied& applied) {
    if (applied.hyper != nullptr)
        return columns_of(table.rule, applied.hyper, applied.state[0] != nullptr);
    Hyper made;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) made.column[i] = table.hyper[applied.row][i];
    return made;
}

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
