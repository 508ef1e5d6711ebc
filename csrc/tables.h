// What a launch is told of its layers: plain data, handed over by value in the kernel's parameters.
//
// A table is filled by `binding.cpp` from what Python lists, or by `plain.h` and `stored.h` from
// tensors, and read by `project.cu` and `update.cu`. Matrices are rows of adjacent elements;
// strides count elements.
#pragma once

#include <cstdint>

namespace dfa {

enum class DType : int32_t { f32, bf16, f16 };
// What a product is computed in: operands of 16 bits, fp32 rounded to tf32, or fp32 on FMA units.
enum class Compute : int32_t { bf16, f16, tf32, f32 };
enum class Distribution : int32_t { matrix, rademacher, uniform, normal };
// By the codes of dfa_kernels.activation.
enum class Activation : int32_t { identity, relu, tanh, sigmoid, gelu, gelu_tanh, silu };
enum class Rule : int32_t { store, sgd, adamw };

constexpr int32_t kHead = -1;  // a stream: δ is the error itself, not a projection

// project --------------------------------------------------------------------------------------

// δ = (e·B·scale / √repeat) ⊙ f′(saved), repeated over the `repeat` rows of each error row.
struct ProjectTarget {
    void* out;          // (rows·repeat, padded)
    const void* saved;  // (rows·repeat, width) in out's dtype; null where f′ is 1
    int64_t out_stride, saved_stride;
    int32_t width;   // columns of δ
    int32_t padded;  // columns that are written: zeros beyond width
    Activation activation;
    int32_t repeat;
    int32_t aligned;  // out and saved: rows of whole 16-byte vectors
};

// Whatever reads the same columns of the same B, from one error.
struct ProjectGroup {
    const void* error;  // (rows, error_width)
    int64_t error_stride;
    int32_t rows, error_width;
    int32_t stream;
    float scale;
    int32_t columns;  // of the widest target
    int32_t first_tile, tiles_n;  // tiles of the grid: those along N follow each other
    int32_t first_target, targets;
    int32_t aligned;  // error: rows of whole 16-byte vectors
};

constexpr int kProjectGroups = 32, kProjectTargets = 64;

struct ProjectTable {
    const void* matrix;  // a user's B (E, matrix_columns) in the error's dtype, or null
    int64_t matrix_columns;
    uint64_t seed;
    Distribution distribution;
    DType error, out;  // of every group; of every target
    int32_t groups, tiles;
    ProjectGroup group[kProjectGroups];
    ProjectTarget target[kProjectTargets];
};

// update ---------------------------------------------------------------------------------------

// A parameter that is stepped in place (or, for `store`, the gradient that is written).
struct Applied {
    void* parameter;
    void* state[2];  // null where the rule has none
    void* copy;      // the low-precision copy of an fp32 master, or null
    const double* hyper;  // its row of contract.RULES in memory, read when the step runs; or null:
    int32_t row;          // of the table's hyperparameters
};

// A term of a gradient's sum over N: dW += δᵀ·x, db += Σ δ.
struct Segment {
    const void* x;  // (rows, K)
    int64_t x_stride;
    const void* delta;  // δ (rows, D); or, where `error` is given, what f′ is read from
    int64_t delta_stride;
    const void* error;  // (rows / repeat, error_width): δ is made on the fly; else null
    int64_t error_stride;
    int32_t rows, error_width, stream, repeat;
    Activation activation;
    float scale;      // of the projection, by √repeat
    int32_t aligned;  // x and δ (or saved): rows of whole 16-byte vectors
};

struct UpdateLayer {
    Applied weight;  // (D, K), states and copy with its strides
    Applied bias;    // (D,); parameter null: none
    int64_t stride;
    int32_t d, k;
    int32_t first_tile, tiles_d;
    int32_t first_segment, segments;
    int32_t blocks;   // of N, over all segments
    int32_t aligned;  // parameter, states and copy: rows of whole 16-byte vectors
};

// A row of hyperparameters as `dfa_kernels.backends.grouped.hyper.columns` makes it.
//   sgd    lr, momentum (0 at the first step), gain, decay, Nesterov's momentum, sign, buffered
//   adamw  1 − lr·decay, ±(1 − β1), β2, 1 − β2, eps, lr / (1 − β1ᵗ), 1 / √(1 − β2ᵗ)
constexpr int kColumns = 7;
constexpr int kUpdateLayers = 64, kUpdateSegments = 128, kUpdateRows = 32;

struct UpdateTable {
    uint64_t seed;              // of B, for δ on the fly
    Distribution distribution;  // of B
    Rule rule;
    DType x, error, parameter, state, copy;
    int32_t layers, tiles;
    int32_t splits;  // parts of the sum over N; 1: none
    float* partial;       // (tiles·splits, tile D, tile K), splits > 1
    float* partial_bias;  // (tiles·splits, tile D)
    int32_t* arrived;     // (tiles,), zeros before and after
    float hyper[kUpdateRows][kColumns];
    UpdateLayer layer[kUpdateLayers];
    Segment segment[kUpdateSegments];
};

// Tiles, as the launchers in project.cu and update.cu use them ------------------------------------

struct Tile {
    int32_t n, d, k;  // rows N; features D; E in `project`, K in `update`
    int32_t threads, stages;
    int32_t shared;  // bytes of a program
};

static_assert(sizeof(ProjectTable) <= 32764 && sizeof(UpdateTable) <= 32764,
              "kernel parameters are at most 32,764 bytes");

}  // namespace dfa
