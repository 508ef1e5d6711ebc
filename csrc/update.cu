// `update`: every fused layer's dW and db, and the optimizer's step with them, in one launch.
//
//     dW = Σ δᵀ·x     db = Σ δ     over the rows of every segment
//     W, b and their states ← the rule's step with dW, db
//
// A program makes one tile of one layer's dW, the programs of its first columns db as well. Where
// the sum over N is split, whoever comes last to a tile adds the parts in their order: the same
// bits in every run, without float atomics.
#include <type_traits>

#include "launch.h"
#include "platform.h"
#include "ptx.cuh"
#include "tables.h"
#include "update_apply.cuh"
#include "update_delta.cuh"
#include "update_product.cuh"
#include "update_tile.cuh"

namespace dfa {
namespace {

// The blocks of kN rows of a layer's segments, in their order: none lies in two segments.
template <int N>
struct Blocks {
    const UpdateTable& table;
    int segment, last, n0 = 0;

    // At the block `skip` of them.
    __device__ __forceinline__ Blocks(const UpdateTable& table, const UpdateLayer& layer, int skip)
        : table(table), segment(layer.first_segment), last(segment + layer.segments) {
        for (; segment < last; ++segment) {
            const int blocks = (table.segment[segment].rows + N - 1) / N;
            if (skip < blocks) break;
            skip -= blocks;
        }
        n0 = skip * N;
    }

    __device__ __forceinline__ const Segment& here() const { return table.segment[segment]; }

    __device__ __forceinline__ void next() {
        n0 += N;
        while (segment < last && n0 >= here().rows) ++segment, n0 = 0;
    }
};

// Where the `tile`-th tile of a weight lies: a few tiles along D, which read the same x, are
// neighbours in time; then the next along K.
template <int SIDE>
__device__ __forceinline__ void place_of(const UpdateLayer& layer, int tile, int& d0, int& k0) {
    constexpr int kNeighbours = 8;
    const int tiles_k = (layer.k + SIDE - 1) / SIDE;
    const int band = tile / (kNeighbours * tiles_k), inside = tile % (kNeighbours * tiles_k);
    const int height = min(layer.tiles_d - band * kNeighbours, kNeighbours);
    d0 = (band * kNeighbours + inside % height) * SIDE;
    k0 = inside / height * SIDE;
}

template <class Shape>
struct Program {
    using Element = typename Shape::Element;
    using Tile = SharedTile<Shape>;
    using Product = std::conditional_t<Shape::kCompute == Compute::f32, ScalarProduct<Shape>,
                                       TensorProduct<Shape>>;
    static constexpr int kSide = Shape::kSide, kThreads = Shape::kThreads;
    static constexpr int kRows = kSide / Product::kBands;  // of a band
    static constexpr int kStride = kSide + 8;              // of its rows in shared memory
    static constexpr int kStage = 2 * Tile::kElements;     // δ, then x
    static constexpr int kTiles = Shape::kStages * kStage * int(sizeof(Element));
    static constexpr int kDelta = Shape::kFly ? Delta<Shape>::kBytes : 0;
    static constexpr int kBytes = kTiles + kDelta + 2 * int(sizeof(Hyper));
    static_assert((kRows * kStride + kSide) * 4 <= kTiles, "a band and db lie where tiles lay");

    const UpdateTable& table;
    const UpdateLayer& layer;
    unsigned char* shared;
    int slot, tile, d0, k0;

    // Sums the blocks [begin, end) of the layer: kStages − 1 are on their way at any time.
    __device__ __forceinline__ void sum(Product& product, int begin, int end) const {
        Element* stages = reinterpret_cast<Element*>(shared);
        const bool bias = k0 == 0 && layer.bias.parameter != nullptr;
        Blocks<Shape::kN> ahead(table, layer, begin), now = ahead;
        Delta<Shape> delta(table, shared + kTiles, d0);
        const int blocks = end - begin;
#pragma unroll 1
        for (int i = 0; i < Shape::kStages - 1; ++i) {
            if (i < blocks) {
                copy(stages + i * kStage, ahead);
                ahead.next();
            }
            cp_async_commit();
        }
        keep_hyper();
        if constexpr (Shape::kFly) {
            if (blocks > 0) {
                delta.fetch(now.here(), now.n0);
                delta.put_fetched();
            }
        }
        int stage = 0, free = Shape::kStages - 1;
        for (int i = 0; i < blocks; ++i) {
            if constexpr (Shape::kFly) delta.make_b(now.here());
            cp_async_wait<Shape::kStages - 2>();
            __syncthreads();
            Element* made = stages + stage * kStage;
            if constexpr (Shape::kFly) {
                delta.make(now.here(), made);
                __syncthreads();
            }
            if (i + Shape::kStages - 1 < blocks) {
                copy(stages + free * kStage, ahead);
                ahead.next();
            }
            cp_async_commit();
            now.next();
            if constexpr (Shape::kFly) {
                if (i + 1 < blocks) delta.fetch(now.here(), now.n0);
            }
            product.add(made, made + Tile::kElements, bias);
            if constexpr (Shape::kFly) delta.put_fetched();
            free = stage;
            stage = stage + 1 == Shape::kStages ? 0 : stage + 1;
        }
        cp_async_wait<0>();
    }

    __device__ __forceinline__ void copy(Element* to, const Blocks<Shape::kN>& blocks) const {
        const Segment& from = blocks.here();
        if (!Shape::kFly || from.activation != Activation::identity) {
            Tile::copy(to, from.delta, from.delta_stride, blocks.n0, from.rows,
                                          d0, layer.d, from.aligned);
        }
        Tile::copy(to + Tile::kElements, from.x, from.x_stride, blocks.n0,
                                      from.rows, k0, layer.k, from.aligned);
    }

    // The weight's hyperparameters, then the bias'.
    __device__ __forceinline__ Hyper* hyper() const {
        return reinterpret_cast<Hyper*>(shared + kTiles + kDelta);
    }

    // Two threads of two warps make them, while the first tiles are on their way.
    __device__ __forceinline__ void keep_hyper() const {
        if (table.rule == Rule::store) return;
        if (threadIdx.x == 0) hyper()[0] = hyper_of(table, layer.weight);
        if (threadIdx.x == 32) hyper()[1] = hyper_of(table, layer.bias);
    }

    // Leaves this part of the sum in memory; whether it was the tile's last.
    __device__ __forceinline__ bool part(const Product& product) const {
        float* weight = table.partial + int64_t(slot) * kSide * kSide;
#pragma unroll
        for (int band = 0; band < Product::kBands; ++band) {
            product.put(band, weight + band * kRows * kSide, kSide);
        }
        product.put_bias(table.partial_bias + int64_t(slot) * kSide);
        int* last = reinterpret_cast<int*>(shared);
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) {
            *last = atomicAdd(table.arrived + tile, 1) == table.splits - 1;
            if (*last) table.arrived[tile] = 0;
        }
        __syncthreads();
        __threadfence();
        return *last;
    }

    // Applies what a band of rows in shared memory, or the parts in memory, say of dW.
    __device__ __forceinline__ void apply_weight(int band, const float* rows) const {
        constexpr int kAtOnce = 256 / kThreads, kVectors = kSide / 4;
        for (int i = threadIdx.x; i < kRows * kVectors; i += kThreads * kAtOnce) {
            Place place[kAtOnce];
            float gradient[kAtOnce][4];
#pragma unroll
            for (int c = 0; c < kAtOnce; ++c) {
                const int row = (i + c * kThreads) / kVectors, column = i % kVectors * 4;
                const int d = d0 + band * kRows + row, k = k0 + column;
                const int count = d < layer.d ? max(min(layer.k - k, 4), 0) : 0;
                place[c] = {d * layer.stride + k, count, count == 4 && layer.aligned};
                vector(gradient[c], rows, row, band, column);
            }
            apply(table, layer.weight, hyper()[0], place, gradient);
        }
    }

    __device__ __forceinline__ void vector(float (&to)[4], const float* rows, int row, int band,
                                           int column) const {
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (table.splits == 1) {
            sum = *reinterpret_cast<const float4*>(rows + row * kStride + column);
        } else {
            const float* part = table.partial + int64_t(tile) * table.splits * kSide * kSide +
                                (band * kRows + row) * kSide + column;
            for (int s = 0; s < table.splits; ++s, part += kSide * kSide) {
                const float4 one = *reinterpret_cast<const float4*>(part);
                sum.x += one.x, sum.y += one.y, sum.z += one.z, sum.w += one.w;
            }
        }
        to[0] = sum.x, to[1] = sum.y, to[2] = sum.z, to[3] = sum.w;
    }

    __device__ __forceinline__ void apply_bias(const float* sums) const {
        const int d = d0 + threadIdx.x;
        if (threadIdx.x >= kSide || d >= layer.d) return;
        float gradient[1][4] = {};
        if (table.splits == 1) {
            gradient[0][0] = sums[threadIdx.x];
        } else {
            const float* part =
                table.partial_bias + int64_t(tile) * table.splits * kSide + threadIdx.x;
            for (int s = 0; s < table.splits; ++s) gradient[0][0] += part[s * kSide];
        }
        const Place place[1] = {{d, 1, false}};
        apply(table, layer.bias, hyper()[1], place, gradient);
    }
};

// table     layers, their segments of rows, and how dW and db are applied: see tables.h
// program   tiles · splits of them, the parts of a tile side by side
template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    update_kernel(DFA_TABLE(UpdateTable) table) {
    using P = Program<Shape>;
    DFA_SHARED(shared);
    const int slot = blockIdx.x, tile = slot / table.splits;
    int l = table.layers - 1;
    while (l > 0 && table.layer[l].first_tile > tile) --l;
    const UpdateLayer& layer = table.layer[l];
    int d0, k0;
    place_of<P::kSide>(layer, tile - layer.first_tile, d0, k0);
    const P program{table, layer, shared, slot, tile, d0, k0};

    typename P::Product product;
    const int share = (layer.blocks + table.splits - 1) / table.splits;
    const int begin = slot % table.splits * share;
    program.sum(product, begin, min(begin + share, layer.blocks));
    __syncthreads();  // the tiles are read: what follows lies in their place
    if (table.splits > 1 && !program.part(product)) return;

    float* sums = reinterpret_cast<float*>(shared);
    float* rows = sums + P::kSide;
#pragma unroll 1
    for (int band = 0; band < P::Product::kBands; ++band) {
        if (table.splits == 1) {
            product.put(band, rows, P::kStride);
            if (band == 0) product.put_bias(sums);
            __syncthreads();
        }
        program.apply_weight(band, rows);
        if (band == 0 && k0 == 0 && layer.bias.parameter) program.apply_bias(sums);
        __syncthreads();
    }
}

// `use` of the shape that a launch asks for.
template <class Use>
auto with_shape(Compute compute, bool large, bool fly, Use use) {
    const auto sized = [&](auto c) {
        constexpr Compute kCompute = decltype(c)::value;
        if (fly) return use(UpdateShape<kCompute, false, true>());
        return large ? use(UpdateShape<kCompute, true, false>())
                     : use(UpdateShape<kCompute, false, false>());
    };
    switch (compute) {
        case Compute::bf16: return sized(std::integral_constant<Compute, Compute::bf16>());
        case Compute::f16: return sized(std::integral_constant<Compute, Compute::f16>());
        case Compute::tf32: return sized(std::integral_constant<Compute, Compute::tf32>());
        default: return sized(std::integral_constant<Compute, Compute::f32>());
    }
}

}  // namespace

Tile update_tile(Compute compute, bool large, bool fly) {
    return with_shape(compute, large, fly, [](auto shape) {
        using S = decltype(shape);
        return Tile{S::kN, S::kSide, S::kSide, S::kThreads, S::kStages, Program<S>::kBytes};
    });
}

Error update(const UpdateTable& table, Compute compute, bool large, bool fly, Stream stream) {
    if (table.splits < 1 || (fly && table.distribution == Distribution::matrix)) {
        return kInvalidValue;
    }
    if (table.tiles == 0) return kSuccess;
    return with_shape(compute, large, fly, [&](auto shape) {
        using S = decltype(shape);
        return launch(update_kernel<S>, dim3(table.tiles * table.splits), dim3(S::kThreads),
                      Program<S>::kBytes, stream, table);
    });
}

}  // namespace dfa
