// A step as Python has it, planned here: what is small and made of plain tensors, whose δ is made on
// the fly. Planning it in Python would take longer than running it.
#pragma once

#include <cmath>

#include "launch.h"
#include "lists.h"
#include "tensors.h"

namespace dfa {

// Fills a table from dfa_kernels.backends.contract's tuples, without a word where they are not plain:
// Python plans those, and says what is wrong with them.
class PlainStep {
   public:
    PlainStep(UpdateTable& table, const Tensors& tensors, const py::dict& codes,
              const py::function& columns, int widest_input)
        : table_(table), tensors_(tensors), codes_(codes.ptr()), columns_(columns),
          widest_(widest_input) {}

    // Whether the table holds all of `updates`, of contract.LayerUpdate.
    bool take(const py::sequence& updates) {
        const Py_ssize_t count = py::len(updates);
        if (count == 0 || count > kUpdateLayers || !PyList_Check(updates.ptr())) return false;
        for (; table_.layers < count; ++table_.layers) {
            if (!layer(PyList_GET_ITEM(updates.ptr(), table_.layers), table_.layer[table_.layers]))
                return false;
        }
        table_.state = known_state_ ? table_.state : table_.parameter;
        return true;
    }

   private:
    // Of a class one value: the first sets it.
    static bool same(bool& known, DType& kept, DType type) {
        if (!known) kept = type;
        known = true;
        return kept == type;
    }

    bool layer(PyObject* update, UpdateLayer& out) {
        if (!PyTuple_Check(update) || PyTuple_GET_SIZE(update) != 3) return false;
        Matrix weight;
        PyObject* const bias = PyTuple_GET_ITEM(update, 1);
        PyObject* const segments = PyTuple_GET_ITEM(update, 2);
        out = {};
        if (!applied(PyTuple_GET_ITEM(update, 0), 2, weight, out.weight)) return false;
        out.d = static_cast<int32_t>(weight.rows);
        out.k = static_cast<int32_t>(weight.columns);
        out.stride = weight.stride;
        Matrix b;
        if (bias != Py_None && (!applied(bias, 1, b, out.bias) || b.columns != out.d)) return false;
        out.aligned = whole_rows(out.weight, out, table_);
        out.first_segment = segments_;
        if (!PyList_Check(segments) || out.k > widest_) return false;
        out.segments = static_cast<int32_t>(PyList_GET_SIZE(segments));
        if (out.segments == 0 || out.segments > kUpdateSegments - segments_) return false;
        for (int i = 0; i < out.segments; ++i)
            if (!segment(PyList_GET_ITEM(segments, i), out, table_.segment[segments_++]))
                return false;
        return true;
    }

    // contract.Update: parameter, states, row of hyperparameters and, where it has one, a copy.
    bool applied(PyObject* update, int ndim, Matrix& parameter, Applied& out) {
        const Py_ssize_t entries = PyTuple_Check(update) ? PyTuple_GET_SIZE(update) : 0;
        if (entries < 3 || (entries > 3 && PyTuple_GET_ITEM(update, 3) != Py_None)) return false;
        PyObject* const states = PyTuple_GET_ITEM(update, 1);
        if (!tensors_.read(PyTuple_GET_ITEM(update, 0), parameter, ndim) ||
            !same(known_parameter_, table_.parameter, parameter.type) || !PyTuple_Check(states) ||
            PyTuple_GET_SIZE(states) > 2)
            return false;
        out.parameter = parameter.data;
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(states); ++i) {
            Matrix state;
            if (!tensors_.read(PyTuple_GET_ITEM(states, i), state, ndim) ||
                !state.is(parameter.rows, parameter.columns, state.type) ||
                state.stride != parameter.stride || !same(known_state_, table_.state, state.type))
                return false;
            out.state[i] = state.data;
        }
        out.row = row(PyTuple_GET_ITEM(update, 2));
        return out.row >= 0;
    }

    // Parameters of a group share one object.
    int row(PyObject* hyper) {
        for (int r = 0; r < rows_; ++r)
            if (hyper_[r] == hyper) return r;
        if (!PyTuple_Check(hyper) || rows_ == kUpdateRows) return -1;
        const py::tuple made = columns_(py::handle(hyper));
        for (int c = 0; c < kColumns; ++c) table_.hyper[rows_][c] = made[c].cast<float>();
        hyper_[rows_] = hyper;
        return rows_++;
    }

    // contract.Segment: error, scale, and contract.Layer: inputs, saved, activation, stream, k.
    bool segment(PyObject* given, const UpdateLayer& layer, Segment& out) {
        if (!PyTuple_Check(given) || PyTuple_GET_SIZE(given) != 3) return false;
        PyObject* const record = PyTuple_GET_ITEM(given, 2);
        if (!PyTuple_Check(record) || PyTuple_GET_SIZE(record) != 5) return false;
        Matrix error, x, saved;
        if (!tensors_.read(PyTuple_GET_ITEM(given, 0), error) ||
            !tensors_.read(PyTuple_GET_ITEM(record, 0), x) ||
            !tensors_.read(PyTuple_GET_ITEM(record, 1), saved) ||
            !same(known_x_, table_.x, x.type) || error.type != x.type ||
            error.columns > kFlyError)
            return false;
        const double scale = PyFloat_AsDouble(PyTuple_GET_ITEM(given, 1));
        const long stream = PyLong_AsLong(PyTuple_GET_ITEM(record, 3));
        const long repeat = PyLong_AsLong(PyTuple_GET_ITEM(record, 4));
        PyObject* const code = PyDict_GetItem(codes_, PyTuple_GET_ITEM(record, 2));
        if (PyErr_Occurred() || code == nullptr) return PyErr_Clear(), false;
        const bool head = stream == kHead;
        if (repeat < 1 || stream < kHead || x.rows != error.rows * repeat ||
            x.columns != layer.k || !saved.is(x.rows, layer.d, x.type) ||
            (head && error.columns < layer.d) || saved.stride * repeat >= Tensors::kStrides)
            return false;
        out = {};
        out.x = x.data;
        out.x_stride = x.stride;
        out.delta = saved.data;
        out.delta_stride = saved.stride;
        out.error = error.data;
        out.error_stride = error.stride;
        out.rows = static_cast<int32_t>(x.rows);
        out.error_width = static_cast<int32_t>(error.columns);
        out.stream = static_cast<int32_t>(stream);
        out.repeat = static_cast<int32_t>(repeat);
        out.activation = static_cast<Activation>(PyLong_AsLong(code));
        out.scale = head ? 1.0f : static_cast<float>(scale / std::sqrt(static_cast<double>(repeat)));
        out.aligned = whole(x.data, x.stride, x.columns, x.type) &&
                      (out.activation == Activation::identity ||
                       whole(saved.data, saved.stride, saved.columns, saved.type));
        return true;
    }

    UpdateTable& table_;
    const Tensors& tensors_;
    PyObject* codes_;
    const py::function& columns_;
    const int64_t widest_;
    PyObject* hyper_[kUpdateRows];
    int rows_ = 0, segments_ = 0;
    bool known_x_ = false, known_parameter_ = false, known_state_ = false;
};

}  // namespace dfa
