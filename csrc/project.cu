// `project`: the error's projection for every point and fused layer, in one launch.
//
//     δh = e·B·scale / √k                 an opaque point's
//     δ  = (e·B·scale / √k) ⊙ f′(saved)   a fused layer's
//
// k: a target's rows for each row of the error (`repeat`).
//
// Everything that reads the same columns of the same B is a group: a program makes a tile of e·B
// once, B's part of it in registers, and serves every target of the group from it.
#include "launch.h"
#include "project_product.cuh"
#include "project_serve.cuh"

namespace dfa {

template <Compute compute, bool large>
constexpr int project_shared() {
    using Shape = ProjectShape<compute, large>;
    constexpr int kProduct = Shape::kErrorBytes + Shape::kFeedbackBytes;
    return kProduct > Staged<Shape>::kBytes ? kProduct : Staged<Shape>::kBytes;
}

// A tile (n, d) of e·B for a group, and of δ for each of its targets.
//
//   error        (N, E), row stride in elements
//   B            made in registers; a user's `matrix`: (E, matrix_columns)
//   saved, out   (N·repeat, D), row strides in elements
template <Compute compute, bool large>
__global__ void __launch_bounds__(ProjectShape<compute, large>::kThreads,
                                  ProjectShape<compute, large>::kBlocks)
    project_kernel(DFA_TABLE(ProjectTable) table) {
    using Shape = ProjectShape<compute, large>;
    DFA_SHARED(shared);
    int g = 0;
    while (g + 1 < table.groups && table.group[g + 1].first_tile <= int(blockIdx.x)) ++g;
    const ProjectGroup& group = table.group[g];
    const int tile = blockIdx.x - group.first_tile, warp = threadIdx.x / 32;
    const int n0 = tile % group.tiles_n * Shape::kN;
    const int d0 = tile / group.tiles_n * Shape::kD;
    const bool head = group.stream == kHead;

    // On FMA units B's tile is the block's; on tensor cores a warp makes its own columns.
    const int column = compute == Compute::f32 ? d0 : d0 + warp % 2 * 64;
    const Feedback feedback = {table.distribution, table.seed, group.stream, group.error_width,
                               table.matrix, table.matrix_columns, table.error, column};
    Product<compute, Shape> product;
    if (!head) multiply(product, shared, group, table.error, feedback, n0);

    const int d = d0 + warp % 2 * 64;
    float* const staged = reinterpret_cast<float*>(shared + warp * (Staged<Shape>::kBytes / 4));
#pragma unroll 1
    for (int pass = 0; pass < Staged<Shape>::kPasses; ++pass) {
        const int n = n0 + warp / 2 * Shape::kRows + pass * Staged<Shape>::kRows;
        __syncwarp();
        if (head) {
            stage_error<Shape>(staged, group, table.error, n, d);
        } else {
            stage(staged, product, pass);
        }
        __syncwarp();
#pragma unroll 1
        for (int t = group.first_target; t < group.first_target + group.targets; ++t) {
            serve<Shape>(table.target[t], staged, head ? 1.0f : group.scale, table.out, n,
                         group.rows, d);
        }
    }
}

template <Compute compute, bool large>
static Error start(const ProjectTable& table, Stream stream) {
    constexpr int kThreads = ProjectShape<compute, large>::kThreads;
    return launch(project_kernel<compute, large>, dim3(table.tiles), dim3(kThreads),
                  project_shared<compute, large>(), stream, table);
}

template <Compute compute>
static Error start(const ProjectTable& table, bool large, Stream stream) {
    return large ? start<compute, true>(table, stream) : start<compute, false>(table, stream);
}

Error project(const ProjectTable& table, Compute compute, bool large, Stream stream) {
    if (table.tiles == 0) return kSuccess;
    switch (compute) {
        case Compute::bf16: return start<Compute::bf16>(table, large, stream);
        case Compute::f16: return start<Compute::f16>(table, large, stream);
        case Compute::tf32: return start<Compute::tf32>(table, large, stream);
        case Compute::f32: return start<Compute::f32>(table, large, stream);
    }
    return kInvalidValue;
}

template <Compute compute, bool large>
static constexpr Tile tile_of() {
    using Shape = ProjectShape<compute, large>;
    return {Shape::kN,       Shape::kD,      Shape::kK,
            Shape::kThreads, Shape::kStages, project_shared<compute, large>()};
}

template <Compute compute>
static constexpr Tile tile_of(bool large) {
    return large ? tile_of<compute, true>() : tile_of<compute, false>();
}

Tile project_tile(Compute compute, bool large) {
    switch (compute) {
        case Compute::bf16: return tile_of<Compute::bf16>(large);
        case Compute::f16: return tile_of<Compute::f16>(large);
        case Compute::tf32: return tile_of<Compute::tf32>(large);
        default: return tile_of<Compute::f32>(large);
    }
}

}  // namespace dfa
