// A step as Python has it, planned here where it is made of plain tensors: for small networks,
// planning it in Python takes longer than running it.
#pragma once

#include <algorithm>
#include <cmath>

#include "lists.h"
#include "tensors.h"

namespace dfa {

// What changes where a step repeats another, of which the updates then hold the rest: the error of
// the one segment that each has, each one's inputs and saved, and numbers for the distinct rows.
struct Given {
    PyObject *error, *inputs, *saved, *rows;

    bool fits(Py_ssize_t layers) const {
        return PyTuple_Check(inputs) && PyTuple_GET_SIZE(inputs) == layers &&
               PyTuple_Check(saved) && PyTuple_GET_SIZE(saved) == layers && PyList_Check(rows);
    }
};

// Fills a table from dfa_kernels.backends.contract's tuples, without a word where they are not
// plain: Python plans those, and says what is wrong with them. Its segments say how δ is made;
// `fly` or StoredDeltas say where.
class PlainStep {
   public:
    UpdateTable& table;
    double scale[kUpdateSegments];  // of the segments' projections, without their √repeat

    // `given`: null where the updates hold everything; `written`: a list that what the step writes
    // to is added to, or null.
    PlainStep(UpdateTable& filled, const Tensors& tensors, const py::dict& codes,
              const py::function& columns, const Given* given, PyObject* written)
        : table(filled),
          tensors_(tensors),
          codes_(codes.ptr()),
          columns_(columns),
          given_(given),
          written_(written) {}

    // Whether the table holds all of `updates`, of contract.LayerUpdate.
    bool take(const py::sequence& updates) {
        const Py_ssize_t count = py::len(updates);
        if (count == 0 || count > kUpdateLayers || !PyList_Check(updates.ptr())) return false;
        if (given_ != nullptr && !given_->fits(count)) return false;
        for (table.layers = 0; table.layers < count; ++table.layers) {
            if (!layer(PyList_GET_ITEM(updates.ptr(), table.layers), table.layer[table.layers]))
                return false;
        }
        if (!known_state_) table.state = table.parameter;
        if (!known_copy_) table.copy = table.parameter;
        return true;
    }

    int64_t widest_error() const { return widest_error_; }
    int64_t widest_input() const { return widest_input_; }
    int segments() const { return segments_; }

    // δ is made by `update`.
    void fly() {
        for (int i = 0; i < segments_; ++i) {
            Segment& s = table.segment[i];
            const bool head = s.stream == kHead;
            s.scale = head ? 1.0f : static_cast<float>(scale[i] / std::sqrt(double(s.repeat)));
        }
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
        out.aligned = whole_rows(out.weight, out, table);
        widest_input_ = std::max(widest_input_, weight.columns);
        out.first_segment = segments_;
        if (!PyList_Check(segments)) return false;
        out.segments = static_cast<int32_t>(PyList_GET_SIZE(segments));
        if (out.segments == 0 || out.segments > kUpdateSegments - segments_) return false;
        if (given_ != nullptr && out.segments != 1) return false;
        for (int i = 0; i < out.segments; ++i)
            if (!segment(PyList_GET_ITEM(segments, i), out)) return false;
        return true;
    }

    // contract.Update: parameter, states, row of hyperparameters and, where it has one, a copy.
    bool applied(PyObject* update, int ndim, Matrix& parameter, Applied& out) {
        const Py_ssize_t entries = PyTuple_Check(update) ? PyTuple_GET_SIZE(update) : 0;
        if (entries < 3) return false;
        PyObject* const states = PyTuple_GET_ITEM(update, 1);
        PyObject* const copy = entries > 3 ? PyTuple_GET_ITEM(update, 3) : Py_None;
        if (!tensors_.read(PyTuple_GET_ITEM(update, 0), parameter, ndim) ||
            !same(known_parameter_, table.parameter, parameter.type) || !PyTuple_Check(states) ||
            PyTuple_GET_SIZE(states) > 2)
            return false;
        out.parameter = parameter.data;
        writes(PyTuple_GET_ITEM(update, 0));
        DLTensor lent;
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(states); ++i) {
            PyObject* const state = PyTuple_GET_ITEM(states, i);
            if (!tensors_.lend(state, lent)) return false;
            if (Tensors::empty(lent)) continue;
            if (!beside(lent, parameter, ndim, known_state_, table.state, out.state[i]))
                return false;
            writes(state);
        }
        if (copy != Py_None) {
            if (!tensors_.lend(copy, lent) ||
                !beside(lent, parameter, ndim, known_copy_, table.copy, out.copy))
                return false;
            writes(copy);
        }
        return hyper(PyTuple_GET_ITEM(update, 2), out) && has_states(out, table);
    }

    // A state or a copy of a parameter: laid out as that is.
    bool beside(const DLTensor& lent, const Matrix& parameter, int ndim, bool& known, DType& type,
                void*& out) {
        Matrix matrix;
        if (!tensors_.read(lent, matrix, ndim) ||
            !matrix.is(parameter.rows, parameter.columns, matrix.type) ||
            matrix.stride != parameter.stride || !same(known, type, matrix.type))
            return false;
        out = matrix.data;
        return true;
    }

    void writes(PyObject* tensor) {
        if (written_ != nullptr && PyList_Append(written_, tensor) != 0)
            throw py::error_already_set();
    }

    // Numbers, or in all of a step a row in memory.
    bool hyper(PyObject* given, Applied& out) {
        if (PyTuple_Check(given) || PyList_Check(given)) {
            out.row = row(given);
            return out.row >= 0 && !in_memory_;
        }
        in_memory_ = true;
        return rows_ == 0 && tensors_.read_row(given, kColumns, out.hyper);
    }

    // Parameters of a group share one object; a compiled step has a list for each parameter.
    int row(PyObject* hyper) {
        for (int r = 0; r < rows_; ++r)
            if (hyper_[r] == hyper) return r;
        for (int r = 0; r < rows_ && given_ == nullptr; ++r)
            if (py::handle(hyper_[r]).equal(py::handle(hyper))) return r;
        if (rows_ == kUpdateRows) return -1;
        PyObject* numbers = hyper;
        if (given_ != nullptr) {
            if (rows_ >= PyList_GET_SIZE(given_->rows)) return -1;
            numbers = PyList_GET_ITEM(given_->rows, rows_);
        }
        const py::tuple made = columns_(py::tuple(py::reinterpret_borrow<py::object>(numbers)));
        if (made.size() != kColumns)
            refuse("a row of hyperparameters has " + std::to_string(made.size()) +
                   " columns, and a kernel reads " + std::to_string(kColumns));
        for (int c = 0; c < kColumns; ++c)
            table.hyper[rows_][c] =
                static_cast<float>(PyFloat_AsDouble(PyTuple_GET_ITEM(made.ptr(), c)));
        if (PyErr_Occurred()) throw py::error_already_set();
        hyper_[rows_] = hyper;
        return rows_++;
    }

    // contract.Segment: error, scale, and contract.Layer: inputs, saved, activation, stream, k.
    bool segment(PyObject* term, const UpdateLayer& layer) {
        if (!PyTuple_Check(term) || PyTuple_GET_SIZE(term) != 3) return false;
        PyObject* const record = PyTuple_GET_ITEM(term, 2);
        if (!PyTuple_Check(record) || PyTuple_GET_SIZE(record) != 5) return false;
        PyObject* from[] = {PyTuple_GET_ITEM(term, 0), PyTuple_GET_ITEM(record, 0),
                            PyTuple_GET_ITEM(record, 1)};
        if (given_ != nullptr) {
            from[0] = given_->error;
            from[1] = PyTuple_GET_ITEM(given_->inputs, table.layers);
            from[2] = PyTuple_GET_ITEM(given_->saved, table.layers);
        }
        Matrix error, x, saved;
        if (!error_.read(tensors_, from[0], error) || !output_.read(tensors_, from[1], x) ||
            !output_.read(tensors_, from[2], saved) ||
            !same(known_x_, table.x, x.type) || !same(known_error_, table.error, error.type))
            return false;
        scale[segments_] = PyFloat_AsDouble(PyTuple_GET_ITEM(term, 1));
        const long stream = PyLong_AsLong(PyTuple_GET_ITEM(record, 3));
        const long repeat = PyLong_AsLong(PyTuple_GET_ITEM(record, 4));
        PyObject* const code = PyDict_GetItem(codes_, PyTuple_GET_ITEM(record, 2));
        if (PyErr_Occurred() || code == nullptr) return PyErr_Clear(), false;
        if (repeat < 1 || stream < kHead || x.rows != error.rows * repeat ||
            x.columns != layer.k || !saved.is(x.rows, layer.d, x.type) ||
            (stream == kHead && error.columns < layer.d) ||
            saved.stride * repeat >= Tensors::kStrides)
            return false;
        widest_error_ = std::max(widest_error_, error.columns);
        Segment& out = table.segment[segments_++] = {};
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
        out.aligned = whole(x.data, x.stride, x.columns, x.type) &&
                      (out.activation == Activation::identity ||
                       whole(saved.data, saved.stride, saved.columns, saved.type));
        return true;
    }

    // A tensor that may come again: an error serves all layers, an output is the next input.
    struct Last {
        PyObject* object = nullptr;
        Matrix matrix;

        bool read(const Tensors& tensors, PyObject* given, Matrix& out) {
            if (given != object && !tensors.read(given, matrix)) return object = nullptr, false;
            object = given;
            out = matrix;
            return true;
        }
    };

    const Tensors& tensors_;
    Last error_, output_;
    PyObject* codes_;
    const py::function& columns_;
    const Given* const given_;
    PyObject* const written_;
    int64_t widest_error_ = 0, widest_input_ = 0;
    PyObject* hyper_[kUpdateRows];
    int rows_ = 0, segments_ = 0;
    bool in_memory_ = false;
    bool known_x_ = false, known_error_ = false;
    bool known_parameter_ = false, known_state_ = false, known_copy_ = false;
};

}  // namespace dfa
