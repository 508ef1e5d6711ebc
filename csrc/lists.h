// Numbers taken from Python's lists, and refused where a kernel would read or write elsewhere.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <limits>
#include <string>

#include "tables.h"

namespace dfa {

namespace py = pybind11;

constexpr int64_t kVector = 16;  // bytes of a vector

[[noreturn]] inline void refuse(const std::string& what) { throw py::value_error(what); }

inline int64_t bytes(DType type) { return type == DType::f32 ? 4 : 2; }

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Takes the numbers of a list one after the other.
class Reader {
   public:
    explicit Reader(const py::list& list) : list_(list.ptr()), count_(PyList_GET_SIZE(list_)) {}

    int64_t integer() {
        const int64_t value = PyLong_AsLongLong(next());
        if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
        return value;
    }

    float real() {
        const double value = PyFloat_AsDouble(next());
        if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
        return static_cast<float>(value);
    }

    int32_t between(const char* name, int64_t low, int64_t high) {
        const int64_t value = integer();
        if (value < low || value > high)
            refuse(std::string(name) + " must be in [" + std::to_string(low) + ", " +
                   std::to_string(high) + "], got " + std::to_string(value));
        return static_cast<int32_t>(value);
    }

    int32_t size(const char* name) { return between(name, 0, kLargest); }

    template <class T>
    T one_of(const char* name, T last) {
        return static_cast<T>(between(name, 0, static_cast<int64_t>(last)));
    }

    // Of elements of `type`; null only where `optional`.
    void* pointer(const char* name, DType type, bool optional = false) {
        return pointer<void>(name, bytes(type), optional);
    }

    // Of elements of so many bytes.
    template <class T>
    T* pointer(const char* name, int64_t bytes, bool optional) {
        const int64_t address = integer();
        if (address == 0 && !optional) refuse(std::string(name) + " is a null pointer");
        if (address % bytes != 0)
            refuse(std::string(name) + " lies at an address that is no multiple of its elements' " +
                   std::to_string(bytes) + " bytes");
        return reinterpret_cast<T*>(address);
    }

    void end() const {
        if (at_ != count_)
            refuse("the list has " + std::to_string(count_) + " numbers, and " +
                   std::to_string(at_) + " were expected");
    }

   private:
    static constexpr int64_t kLargest = std::numeric_limits<int32_t>::max() - 127;

    PyObject* next() {
        if (at_ == count_) refuse("the list ends after " + std::to_string(count_) + " numbers");
        return PyList_GET_ITEM(list_, at_++);
    }

    PyObject* list_;
    Py_ssize_t count_, at_ = 0;
};

inline bool whole(const void* pointer, int64_t stride, int64_t width, DType type) {
    return (reinterpret_cast<int64_t>(pointer) | stride * bytes(type) | width * bytes(type)) %
               kVector == 0;
}

// A row of `width` elements must not reach into the next one.
inline int64_t row_stride(Reader& from, const char* name, int64_t rows, int64_t width) {
    const int64_t stride = from.integer();
    if (rows > 1 && stride < width)
        refuse(std::string(name) + " has rows of " + std::to_string(width) + " elements, " +
               std::to_string(stride) + " apart");
    return stride;
}

// Whether a parameter, its states and its copy have rows of whole vectors.
inline bool whole_rows(const Applied& a, const UpdateLayer& layer, const UpdateTable& table) {
    const auto fits = [&](const void* at, DType type) {
        return at == nullptr || whole(at, layer.stride, layer.k, type);
    };
    return fits(a.parameter, table.parameter) && fits(a.state[0], table.state) &&
           fits(a.state[1], table.state) && fits(a.copy, table.copy);
}

// Whether the states are there that the rule reads; a momentum of 0 needs none, and without one a
// momentum in memory is not read.
inline bool has_states(const Applied& a, const UpdateTable& table) {
    if (a.parameter == nullptr || table.rule == Rule::store) return true;
    const float* const hyper = table.hyper[a.row];
    if (table.rule == Rule::sgd)
        return a.state[0] != nullptr || a.hyper != nullptr || (hyper[1] == 0 && hyper[6] == 0);
    return a.state[0] != nullptr && a.state[1] != nullptr;
}

}  // namespace dfa
