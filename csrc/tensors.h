// Tensors read where they are, in nanoseconds and without libtorch: by the DLPack exchange table that
// torch 2.10 and later offer as torch.Tensor.__dlpack_c_exchange_api__.
#pragma once

#include <Python.h>

#include <cstdint>

#include "tables.h"

namespace dfa {

// As dlpack.h 1.x lays it out, up to what is used here.
struct DLTensor {
    void* data;
    int32_t device_type, device_id;
    int32_t ndim;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides;
    uint64_t byte_offset;
};

struct DLExchange {
    uint32_t major, minor;
    DLExchange* older;
    void *allocate, *managed_from_object, *managed_to_object;
    int (*tensor_from_object)(void* object, DLTensor* out);  // lent until control returns
};

// A matrix (or a vector, as one row of it) whose rows are adjacent elements.
struct Matrix {
    void* data;
    int64_t rows, columns, stride;
    DType type;

    bool is(int64_t r, int64_t c, DType t) const { return rows == r && columns == c && type == t; }
};

class Tensors {
   public:
    // As dfa_kernels.backends.grouped.layout has them.
    static constexpr int64_t kSizes = (int64_t{1} << 31) - 128;
    static constexpr int64_t kStrides = (int64_t{1} << 31) / 128;

    Tensors(void* table, int device) : device_(device) {
        const auto* exchange = static_cast<const DLExchange*>(table);
        if (exchange->major == 1) lend_ = exchange->tensor_from_object;
    }

    // Whether `object` is a tensor, and what torch says of it.
    bool lend(PyObject* object, DLTensor& out) const {
        if (lend_ == nullptr) return false;
        if (lend_(object, &out) != 0) return PyErr_Clear(), false;
        return true;
    }

    // Whether `object` is a tensor that a kernel can take as it is.
    bool read(PyObject* object, Matrix& out, int ndim = 2) const {
        DLTensor t;
        return lend(object, t) && read(t, out, ndim);
    }

    bool read(const DLTensor& t, Matrix& out, int ndim) const {
        if (t.ndim != ndim || t.lanes != 1 || !is_here(t) || !has_dtype(t, out.type)) return false;
        out.data = static_cast<char*>(t.data) + t.byte_offset;
        out.rows = ndim == 2 ? t.shape[0] : 1;
        out.columns = t.shape[ndim - 1];
        out.stride = ndim == 2 ? t.strides[0] : out.columns;
        return out.rows > 0 && out.columns > 0 && out.rows < kSizes && out.columns < kSizes &&
               t.strides[ndim - 1] == 1 && out.stride >= out.columns && out.stride < kStrides;
    }

    // Whether `object` is a tensor of so many adjacent doubles.
    bool read_row(PyObject* object, int64_t count, const double*& out) const {
        DLTensor t;
        if (!lend(object, t)) return false;
        out = reinterpret_cast<const double*>(static_cast<char*>(t.data) + t.byte_offset);
        return t.ndim == 1 && t.shape[0] == count && t.strides[0] == 1 && t.lanes == 1 &&
               t.code == kFloat && t.bits == 64 && is_here(t);
    }

    // Whether it has no elements: a state that the rule does without.
    static bool empty(const DLTensor& t) { return t.ndim == 1 && t.shape[0] == 0; }

   private:
    enum : int32_t { kCPU = 1, kCUDA = 2 };
    enum : uint8_t { kFloat = 2, kBfloat = 4 };

    bool is_here(const DLTensor& t) const {
        return device_ < 0 ? t.device_type == kCPU
                           : t.device_type == kCUDA && t.device_id == device_;
    }

    static bool has_dtype(const DLTensor& t, DType& type) {
        if (t.code == kFloat && t.bits == 32) return type = DType::f32, true;
        if (t.code == kBfloat && t.bits == 16) return type = DType::bf16, true;
        if (t.code == kFloat && t.bits == 16) return type = DType::f16, true;
        return false;
    }

    int device_;  // negative: the CPU
    int (*lend_)(void*, DLTensor*) = nullptr;
};

}  // namespace dfa
