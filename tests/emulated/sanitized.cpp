// A few launches of both kernels, for the sanitizers to watch: every matrix ends where its memory
// does, what must be written begins as NaN. As a program, without arguments:
//
//     0: all that was written is finite; 1: some is not, or the emulator says why it stopped
#include <array>
#include <cmath>
#include <cstdio>
#include <memory>
#include <vector>

#include "launch.h"
#include "options.h"

namespace {

using namespace dfa;

int failures = 0;

struct Matrix {
    DType type;
    int64_t rows, columns, stride;
    std::unique_ptr<char[]> memory;

    static int64_t bytes(DType type) { return type == DType::f32 ? 4 : 2; }
    int64_t size() const { return rows ? (rows - 1) * stride + columns : 0; }

    float at(int64_t row, int64_t column) const {
        const int64_t i = row * stride + column;
        if (type == DType::f32) return reinterpret_cast<const float*>(memory.get())[i];
        if (type == DType::bf16) return reinterpret_cast<const __nv_bfloat16*>(memory.get())[i];
        return reinterpret_cast<const __half*>(memory.get())[i];
    }
    void put(int64_t i, float value) {
        if (type == DType::f32) reinterpret_cast<float*>(memory.get())[i] = value;
        if (type == DType::bf16) reinterpret_cast<__nv_bfloat16*>(memory.get())[i] = value;
        if (type == DType::f16) reinterpret_cast<__half*>(memory.get())[i] = value;
    }
    bool whole() const {  // rows of whole 16-byte vectors
        return (stride | columns) * bytes(type) % 16 == 0;
    }
    bool finite() const {
        for (int64_t row = 0; row < rows; ++row)
            for (int64_t column = 0; column < columns; ++column)
                if (!std::isfinite(at(row, column))) return false;
        return true;
    }
};

constexpr float kUnwritten = NAN;

Matrix matrix(DType type, int64_t rows, int64_t columns, int64_t stride, float value) {
    Matrix m{type, rows, columns, stride, nullptr};
    m.memory.reset(new char[m.size() * Matrix::bytes(type)]);
    for (int64_t i = 0; i < m.size(); ++i) m.put(i, value);
    return m;
}

Matrix random(DType type, int64_t rows, int64_t columns, int64_t stride) {
    static uint32_t state = 1;
    Matrix m = matrix(type, rows, columns, stride, 0);
    for (int64_t i = 0; i < m.size(); ++i) {
        state = state * 1664525 + 1013904223;
        m.put(i, static_cast<float>(state >> 16) / 65536 - 0.5f);
    }
    return m;
}

void expect(const char* name, Error error, std::initializer_list<const Matrix*> written) {
    bool good = error == kSuccess;
    for (const Matrix* m : written) good = good && m->finite();
    if (good) return;
    ++failures;
    std::printf("%s: %s\n", name, error == kSuccess ? "not finite" : error_text(error));
}

using Row = std::array<double, kColumns>;

int tiles(int size, int tile) { return (size + tile - 1) / tile; }

// δ of two layers of one group, the second narrower; and of the head.
void run_project(const char* name, Compute compute, DType type, Distribution distribution,
                 int rows, int error_width, int width, int padding, int repeat) {
    const Matrix error = random(type, rows, error_width, error_width + padding);
    const Matrix feedback = random(type, error_width, width, width);
    const int narrow = width / 2, widths[] = {width, narrow, error_width};
    std::unique_ptr<ProjectTable> table(new ProjectTable{});
    const Tile tile = project_tile(compute, false);
    table->matrix = distribution == Distribution::matrix ? feedback.memory.get() : nullptr;
    table->matrix_columns = width;
    table->seed = 1234;
    table->distribution = distribution;
    table->error = table->out = type;
    table->groups = 2;
    std::vector<Matrix> saved, out;
    for (int i = 0; i < 3; ++i) {
        saved.push_back(random(type, rows * repeat, widths[i], widths[i] + padding));
        out.push_back(matrix(type, rows * repeat, widths[i], widths[i] + padding, kUnwritten));
        const bool aligned = saved[i].whole() && out[i].whole();
        table->target[i] = {out[i].memory.get(), saved[i].memory.get(), out[i].stride,
                            saved[i].stride, widths[i], widths[i],
                            i == 0 ? Activation::tanh : Activation::gelu, repeat, aligned};
    }
    for (int g = 0; g < 2; ++g) {
        const int columns = g == 0 ? width : error_width, tiles_n = tiles(rows, tile.n);
        table->group[g] = {error.memory.get(), error.stride, rows, error_width,
                           g == 0 ? 0 : kHead, 0.1f, columns, table->tiles, tiles_n,
                           g == 0 ? 0 : 2, g == 0 ? 2 : 1, error.whole()};
        table->tiles += tiles_n * tiles(columns, tile.d);
    }
    expect(name, project(*table, compute, false, nullptr), {&out[0], &out[1], &out[2]});
}

// The step of two layers, whose sums are of two segments and of one. `row`: hyperparameters that
// the kernel reads, or null.
void run_update(const char* name, Compute compute, DType type, Rule rule, int rows, int d, int k,
                int padding, int splits, bool fly, const double* row = nullptr) {
    constexpr int kErrorWidth = 10, kSegments = 3;
    const Tile tile = update_tile(compute, false, fly);
    std::unique_ptr<UpdateTable> table(new UpdateTable{});
    table->seed = 1234;
    table->distribution = Distribution::rademacher;
    table->rule = rule;
    table->x = table->error = type;
    table->copy = DType::bf16;
    table->layers = 2;
    table->splits = splits;
    const float sgd[kColumns] = {0.1f, 0.9f, 1, 0.01f, 0, 1, 1};
    const float adamw[kColumns] = {0.99f, 0.1f, 0.99f, 0.01f, 1e-8f, 0.1f, 1};
    for (int i = 0; i < kColumns; ++i) table->hyper[0][i] = rule == Rule::sgd ? sgd[i] : adamw[i];
    std::vector<Matrix> kept, written;
    kept.reserve(64), written.reserve(64);
    const auto hold = [&](std::vector<Matrix>& where, Matrix m) -> void* {
        where.push_back(std::move(m));
        return where.back().memory.get();
    };
    for (int s = 0; s < kSegments; ++s) {
        const int here = rows - 5 * s;
        Segment& segment = table->segment[s];
        segment.x = hold(kept, random(type, here, k, k + padding));
        segment.x_stride = k + padding;
        segment.delta = hold(kept, random(type, here, d, d + padding));
        segment.delta_stride = d + padding;
        segment.aligned = kept.back().whole() && kept[kept.size() - 2].whole();
        segment.rows = here;
        segment.repeat = 1;
        segment.stream = 0;
        segment.scale = 0.1f;
        if (!fly) continue;
        segment.error = hold(kept, random(type, here, kErrorWidth, kErrorWidth));
        segment.error_stride = segment.error_width = kErrorWidth;
        segment.activation = Activation::tanh;
    }
    const auto applied = [&](int height, int width) {
        const bool store = rule == Rule::store;
        const auto one = [&](DType type) {
            return store ? matrix(type, height, width, width, kUnwritten)
                         : random(type, height, width, width);
        };
        Applied a{hold(written, one(DType::f32)), {}, nullptr, nullptr, 0};
        if (store) return a;
        a.hyper = row;
        a.state[0] = hold(written, one(DType::f32));
        if (rule == Rule::adamw)
            a.state[1] = hold(written, matrix(DType::f32, height, width, width, 0.01f));
        a.copy = hold(written, matrix(DType::bf16, height, width, width, kUnwritten));
        return a;
    };
    for (int l = 0; l < 2; ++l) {
        UpdateLayer& layer = table->layer[l];
        layer.weight = applied(d, k);
        layer.aligned = written.back().whole();
        layer.bias = applied(1, d);
        layer.stride = k;
        layer.d = d, layer.k = k;
        layer.first_tile = table->tiles;
        layer.tiles_d = tiles(d, tile.d);
        table->tiles += layer.tiles_d * tiles(k, tile.k);
        layer.first_segment = 2 * l, layer.segments = 2 - l;
        for (int s = 2 * l; s < 2 + l; ++s) layer.blocks += tiles(table->segment[s].rows, tile.n);
    }
    const int slots = table->tiles * splits;
    Matrix partial = matrix(DType::f32, slots, tile.d * tile.k, tile.d * tile.k, kUnwritten);
    Matrix bias = matrix(DType::f32, slots, tile.d, tile.d, kUnwritten);
    std::vector<int32_t> arrived(table->tiles);
    table->partial = reinterpret_cast<float*>(partial.memory.get());
    table->partial_bias = reinterpret_cast<float*>(bias.memory.get());
    table->arrived = arrived.data();
    expect(name, update(*table, compute, false, fly, nullptr), {});
    for (const Matrix& m : written) expect(name, kSuccess, {&m});
    for (const int32_t count : arrived)
        if (count) ++failures, std::printf("%s: a counter is not 0 again\n", name);
}

}  // namespace

int main() {
    constexpr DType kF32 = DType::f32, kBf16 = DType::bf16, kF16 = DType::f16;
    emulator::options = {1, 0, 1};
    run_project("signs", Compute::bf16, kBf16, Distribution::rademacher, 37, 24, 72, 0, 1);
    run_project("normal, odd", Compute::f16, kF16, Distribution::normal, 37, 11, 37, 3, 2);
    emulator::options = {2, 1, 1};
    run_project("a user's B", Compute::bf16, kBf16, Distribution::matrix, 35, 35, 70, 1, 1);
    run_project("tf32", Compute::tf32, kF32, Distribution::uniform, 33, 20, 68, 0, 1);
    run_project("f32, odd", Compute::f32, kF32, Distribution::normal, 33, 13, 35, 1, 1);
    emulator::options = {0, 3, 3};
    run_update("store", Compute::bf16, kBf16, Rule::store, 70, 72, 40, 0, 2, false);
    run_update("AdamW, odd", Compute::f16, kF16, Rule::adamw, 67, 37, 67, 1, 2, false);
    emulator::options = {3, 0, 3};
    run_update("SGD on the fly", Compute::bf16, kBf16, Rule::sgd, 70, 40, 40, 0, 2, true);
    run_update("tf32", Compute::tf32, kF32, Rule::sgd, 37, 36, 36, 0, 1, false);
    run_update("f32 on the fly, odd", Compute::f32, kF32, Rule::adamw, 37, 35, 67, 1, 1, true);
    // Rows in memory, each of which ends where its memory does.
    const auto sgd = std::make_unique<Row>(Row{0.1, 0.9, 0.5, 0.01, 1, 0, 0});
    const auto adamw = std::make_unique<Row>(Row{0.1, 0.9, 0.99, 1e-8, 0.01, 1, 1000});
    run_update("SGD by memory", Compute::bf16, kBf16, Rule::sgd, 70, 40, 40, 0, 2, true,
               sgd->data());
    run_update("AdamW by memory", Compute::f16, kF16, Rule::adamw, 10, 37, 67, 1, 1, false,
               adamw->data());
    return failures != 0;
}
