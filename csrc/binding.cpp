// The Python module `_core`: flat lists of numbers in, launches of `project` and `update` out.
//
// Python has checked what a user gave; still nothing passes here that would make a kernel read or
// write elsewhere: null and misaligned pointers, sizes beyond 32 bits, tables with too many rows.

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "launch.h"
#include "lists.h"
#include "plain.h"
#include "start.h"
#include "stored.h"
#include "tensors.h"

namespace dfa {
namespace {

// project --------------------------------------------------------------------------------------

ProjectTarget read_target(Reader& from, DType out, int64_t rows) {
    ProjectTarget t{};
    t.repeat = from.between("the rows for each row of the error", 1, 1 << 30);
    t.width = from.size("the width of δ");
    t.padded = from.size("the padded width of δ");
    if (t.padded < t.width) refuse("δ is padded to fewer columns than it has");
    rows *= t.repeat;
    t.out = from.pointer("δ", out, rows * t.padded == 0);
    t.out_stride = row_stride(from, "δ", rows, t.padded);
    t.activation = from.one_of("the activation", Activation::silu);
    const bool unread = t.activation == Activation::identity || rows * t.width == 0;
    t.saved = from.pointer("what f′ is read from", out, unread);
    t.saved_stride = row_stride(from, "what f′ is read from", unread ? 0 : rows, t.width);
    t.aligned = whole(t.out, t.out_stride, t.padded, out) &&
                (unread || whole(t.saved, t.saved_stride, t.width, out));
    return t;
}

ProjectGroup read_group(Reader& from, ProjectTable& table, int& targets) {
    ProjectGroup g{};
    g.rows = from.size("the rows of the error");
    g.error_width = from.size("the width of the error");
    g.error = from.pointer("the error", table.error, int64_t{g.rows} * g.error_width == 0);
    g.error_stride = row_stride(from, "the error", g.rows, g.error_width);
    g.stream = from.between("the stream", kHead, std::numeric_limits<int32_t>::max());
    g.scale = from.real();
    g.aligned = whole(g.error, g.error_stride, g.error_width, table.error);
    g.first_target = targets;
    g.targets = from.between("the targets of a launch", 1, kProjectTargets - targets);
    for (int i = 0; i < g.targets; ++i) {
        const ProjectTarget& t = table.target[targets++] = read_target(from, table.out, g.rows);
        g.columns = std::max(g.columns, t.padded);
        if (g.stream == kHead && t.width > g.error_width)
            refuse("δ of the layer at the error point is wider than the error");
        if (g.stream != kHead && table.distribution == Distribution::matrix &&
            t.width > table.matrix_columns)
            refuse("a user's B has fewer columns than δ");
    }
    return g;
}

void run_project(const py::list& numbers) {
    Reader from(numbers);
    const Where where(from);
    ProjectTable table;
    const auto compute = from.one_of("what is computed in", Compute::f32);
    table.distribution = from.one_of("the distribution", Distribution::normal);
    table.seed = static_cast<uint64_t>(from.integer());
    table.error = from.one_of("the error's dtype", DType::f16);
    table.out = from.one_of("δ's dtype", DType::f16);
    const bool made = table.distribution != Distribution::matrix;
    table.matrix = from.pointer("a user's B", table.error, true);
    table.matrix_columns = from.integer();
    if (!made && table.matrix == nullptr && table.matrix_columns != 0)
        refuse("a user's B is a null pointer");
    const int groups = from.between("the groups of a launch", 0, kProjectGroups);
    int targets = 0;
    table.groups = 0;
    for (int i = 0; i < groups; ++i) {
        const ProjectGroup g = read_group(from, table, targets);
        if (g.rows > 0 && g.columns > 0) table.group[table.groups++] = g;
    }
    from.end();
    const bool large = size_tiles(table, where, compute);
    if (table.tiles == 0) return;
    launch_on(where, [&] { return project(table, compute, large, where.stream); });
}

// update ---------------------------------------------------------------------------------------

Applied read_applied(Reader& from, const UpdateTable& table, int rows, bool optional) {
    Applied a{};
    a.parameter = from.pointer("a parameter", table.parameter, optional);
    for (void*& state : a.state) state = from.pointer("a state", table.state, true);
    a.copy = from.pointer("a low-precision copy", table.copy, true);
    if (rows > 0) {
        a.row = from.between("the row of hyperparameters", 0, rows - 1);
    } else {
        a.hyper = from.pointer<const double>("a row of hyperparameters", 8, a.parameter == nullptr);
    }
    if (!has_states(a, table)) refuse("a state that the rule reads is a null pointer");
    return a;
}

Segment read_segment(Reader& from, const UpdateTable& table, const UpdateLayer& layer, bool fly) {
    Segment s{};
    s.rows = from.size("the rows of x");
    const bool empty = s.rows == 0 || layer.k == 0 || layer.d == 0;
    s.x = from.pointer("x", table.x, empty);
    s.x_stride = row_stride(from, "x", s.rows, layer.k);
    s.repeat = 1;
    s.stream = kHead;
    bool aligned = whole(s.x, s.x_stride, layer.k, table.x);
    if (!fly) {  // rows of whole vectors, with zeros beyond the width
        s.delta = from.pointer("δ", table.x, empty);
        s.delta_stride = row_stride(from, "δ", s.rows, layer.d);
        s.aligned = aligned && whole(s.delta, s.delta_stride, 0, table.x);
        return s;
    }
    s.repeat = from.between("the rows for each row of the error", 1, 1 << 30);
    s.activation = from.one_of("the activation", Activation::silu);
    const bool unread = empty || s.activation == Activation::identity;
    s.delta = from.pointer("what f′ is read from", table.x, unread);
    s.delta_stride = row_stride(from, "what f′ is read from", unread ? 0 : s.rows, layer.d);
    s.error_width = from.between("the width of an error whose δ is made on the fly", 0, kFlyError);
    s.error = from.pointer("the error", table.error, empty || s.error_width == 0);
    s.error_stride = row_stride(from, "the error", s.rows / s.repeat, s.error_width);
    s.stream = from.between("the stream", kHead, std::numeric_limits<int32_t>::max());
    s.scale = from.real();
    if (s.stream == kHead && layer.d > s.error_width)
        refuse("the layer at the error point is wider than the error");
    s.aligned = aligned && (unread || whole(s.delta, s.delta_stride, layer.d, table.x));
    return s;
}

UpdateLayer read_layer(Reader& from, UpdateTable& table, int rows, bool fly, int& segments) {
    UpdateLayer layer{};
    layer.d = from.size("the rows of a weight");
    layer.k = from.size("the columns of a weight");
    layer.stride = row_stride(from, "a weight", layer.d, layer.k);
    layer.weight = read_applied(from, table, rows, int64_t{layer.d} * layer.k == 0);
    layer.bias = read_applied(from, table, rows, true);
    layer.aligned = whole_rows(layer.weight, layer, table);
    layer.first_segment = segments;
    layer.segments = from.between("the segments of a launch", 0, kUpdateSegments - segments);
    for (int i = 0; i < layer.segments; ++i)
        table.segment[segments++] = read_segment(from, table, layer, fly);
    return layer;
}

void start_update(UpdateTable& table, const Where& where, Compute compute, bool fly,
                  const py::object& scratch) {
    const Division division(table, where, compute, fly);
    if (table.tiles == 0) return;
    const auto given = Scratch::take(scratch, division.floats, division.counters);
    division.place(table, given.floats, given.counters);
    launch_on(where, [&] { return update(table, compute, division.large, fly, where.stream); });
}

void run_update(const py::list& numbers, const py::object& scratch) {
    Reader from(numbers);
    const Where where(from);
    UpdateTable table;
    const auto compute = from.one_of("what is computed in", Compute::f32);
    table.distribution = from.one_of("the distribution", Distribution::normal);
    table.seed = static_cast<uint64_t>(from.integer());
    const bool fly = from.between("whether δ is made on the fly", 0, 1) != 0;
    if (fly && table.distribution == Distribution::matrix)
        refuse("δ is never made on the fly from a user's B");
    table.rule = from.one_of("the rule", Rule::adamw);
    for (DType* type : {&table.x, &table.error, &table.parameter, &table.state, &table.copy})
        *type = from.one_of("a dtype", DType::f16);
    const int rows = from.between("the rows of hyperparameters", 0, kUpdateRows);
    if (rows == 0 && table.rule == Rule::store) refuse("to store a gradient takes a row of zeros");
    for (int r = 0; r < rows; ++r)
        for (float& h : table.hyper[r]) h = from.real();
    const int layers = from.between("the layers of a launch", 0, kUpdateLayers);
    int segments = 0;
    table.layers = 0;
    for (int i = 0; i < layers; ++i) {
        const UpdateLayer layer = read_layer(from, table, rows, fly, segments);
        if (layer.d > 0 && layer.k > 0) table.layer[table.layers++] = layer;
    }
    from.end();
    start_update(table, where, compute, fly, scratch);
}

// A step of plain tensors ------------------------------------------------------------------------

Compute compute_of(DType x, bool tf32) {
    if (x == DType::f32) return tf32 ? Compute::tf32 : Compute::f32;
    return x == DType::bf16 ? Compute::bf16 : Compute::f16;
}

// A product of two dtypes is one of operands in the wider; of bf16 and fp16 that is fp32.
DType promoted(DType a, DType b) { return a == b ? a : DType::f32; }

// Whether δ of the step finds room in one launch of `project`; if not, nothing is started.
bool start_stored(PlainStep& step, const Matrix* matrix, const Where& where, bool tf32,
                  const py::object& scratch) {
    UpdateTable& table = step.table;
    ProjectTable projections;
    StoredDeltas stored(step, projections);
    if (!stored.take(matrix)) return false;
    const Compute projected = compute_of(promoted(projections.error, table.x), tf32);
    const Compute compute = compute_of(table.x, tf32);
    const bool large = size_tiles(projections, where, projected);
    const Division division(table, where, compute, false);
    const auto given =
        Scratch::take(scratch, stored.floats() + division.floats, division.counters);
    stored.place(given.floats);
    division.place(table, given.floats + stored.floats(), given.counters);
    launch_on(where, [&] {
        const Error error = project(projections, projected, large, where.stream);
        if (error != kSuccess) return error;
        return update(table, compute, division.large, false, where.stream);
    });
    return true;
}

Given given_of(const py::tuple& repeated) {
    if (repeated.size() != 4) refuse("a repeated step has an error, inputs, saved and rows");
    PyObject* const own = repeated.ptr();
    return {PyTuple_GET_ITEM(own, 0), PyTuple_GET_ITEM(own, 1), PyTuple_GET_ITEM(own, 2),
            PyTuple_GET_ITEM(own, 3)};
}

// Whether the step is started; if not, nothing is changed, and Python plans it.
bool run_plain_step(const py::list& numbers, const py::capsule& exchange, const py::object& values,
                    const py::sequence& updates, const py::dict& codes,
                    const py::function& columns, const py::object& scratch,
                    const py::object& repeated, const py::object& written) {
    Reader from(numbers);
    const Where where(from);
    const bool cpu = from.between("whether tensors are the CPU's", 0, 1) != 0;
    UpdateTable table;
    table.distribution = from.one_of("the distribution", Distribution::normal);
    table.seed = static_cast<uint64_t>(from.integer());
    table.rule = from.one_of("the rule", Rule::adamw);
    const bool tf32 = from.between("whether tf32 is allowed", 0, 1) != 0;
    const int widest_input = from.size("the widest input of a layer whose δ is made on the fly");
    from.end();
    const Tensors tensors(exchange.get_pointer(), cpu ? -1 : where.device);
    Given given;
    if (!repeated.is_none()) given = given_of(repeated);
    PlainStep step(table, tensors, codes, columns, repeated.is_none() ? nullptr : &given,
                   PyList_Check(written.ptr()) ? written.ptr() : nullptr);
    if (!step.take(updates)) return false;
    Matrix matrix;
    if (!values.is_none()) {
        if (!tensors.read(values.ptr(), matrix)) return false;
        return start_stored(step, &matrix, where, tf32, scratch);
    }
    if (table.distribution == Distribution::matrix) return false;
    // One launch computes in one dtype.
    const bool differs = table.error != table.x;
    if (differs || step.widest_error() > kFlyError || step.widest_input() > widest_input)
        return start_stored(step, nullptr, where, tf32, scratch);
    step.fly();
    start_update(table, where, compute_of(table.x, tf32), true, scratch);
    return true;
}

py::tuple as_tuple(const Tile& tile) {
    return py::make_tuple(tile.n, tile.d, tile.k, tile.threads, tile.stages, tile.shared);
}

}  // namespace
}  // namespace dfa

#ifndef DFA_VERSION
#define DFA_VERSION "unversioned"
#endif

PYBIND11_MODULE(_core, module) {
    using namespace dfa;
    module.doc() = "The grouped kernels `project` and `update`; see dfa_kernels.backends.cuda.";
    module.attr("version") = DFA_VERSION;
    module.attr("limits") = py::dict(
        py::arg("groups") = kProjectGroups, py::arg("targets") = kProjectTargets,
        py::arg("layers") = kUpdateLayers, py::arg("segments") = kUpdateSegments,
        py::arg("rows") = kUpdateRows, py::arg("fly_error") = kFlyError);
    module.attr("runtime") = kRuntimeVersion;
    module.def("driver", driver_version, "The newest CUDA that the driver runs; 0 without one.");
    module.def("project", run_project, "Start `project` of what the list says.");
    module.def("update", run_update,
               "Start `update` of what the list says; scratch(floats, counters) gives addresses of "
               "so many floats and counters that are 0, and what to hold until then.");
    module.def("plain_step", run_plain_step,
               "Start a step of plain tensors as contract.LayerUpdate has them, with a user's B or "
               "None; False: it is not plain. Scratch as for `update`. repeated: None, or "
               "(error, inputs, saved, rows) of a step that the updates hold the rest of. written: "
               "None, or a list that what is written to is added to.",
               py::arg("numbers"), py::arg("exchange"), py::arg("values"), py::arg("updates"),
               py::arg("codes"), py::arg("columns"), py::arg("scratch"),
               py::arg("repeated") = py::none(), py::arg("written") = py::none());
    module.def("project_tile", [](int compute, bool large) {
        return as_tuple(project_tile(static_cast<Compute>(compute), large));
    });
    module.def("update_tile", [](int compute, bool large, bool fly) {
        return as_tuple(update_tile(static_cast<Compute>(compute), large, fly));
    });
}
