// The instructions of csrc/ptx.cuh, by the fragment layouts that are written there.
#include "block.h"
#include "sanitizers.h"

namespace dfa {

using emulator::block;
using emulator::Where;

void cp_async_16(void* to, const void* from, int bytes, Where where) {
    block->expect_shared(to, 16, "cp.async: the destination", where);
    if (reinterpret_cast<uintptr_t>(from) % 16)
        block->fail("cp.async: the source is not aligned", where);
    if (bytes < 0 || bytes > 16) block->fail("cp.async: reads 0 to 16 bytes", where);
    emulator::Strand& me = block->me();
    emulator::Copy copy{to, {}, me.group, where};
    emulator::reads(from, bytes);
    std::memcpy(copy.data, from, bytes);
    me.copies.push_back(copy);
    emulator::writes(to, 16);
    std::memset(to, 0xFF, 16);  // until it lands
}

void cp_async_commit() { ++block->me().group; }

void cp_async_wait(int left) {
    emulator::Strand& me = block->me();
    std::erase_if(me.copies, [&](const emulator::Copy& copy) {
        if (copy.group >= me.group - left) return false;
        emulator::writes(copy.to, 16);
        std::memcpy(copy.to, copy.data, 16);
        return true;
    });
}

template <bool transposed>
static void ldmatrix(uint32_t (&r)[4], const void* row, Where where) {
    struct Mine {
        uint32_t* r;
        const void* row;
    } mine{r, row};
    block->expect_shared(row, 16, "ldmatrix: the row", where);
    emulator::warp_meeting(~0u, &mine, [](void** lanes, uint32_t) {
        uint16_t matrix[4][8][8];
        for (int lane = 0; lane < 32; ++lane) {
            const void* row = static_cast<Mine*>(lanes[lane])->row;
            emulator::reads(row, 16);
            std::memcpy(matrix[lane / 8][lane % 8], row, 16);
        }
        for (int lane = 0; lane < 32; ++lane)
            for (int i = 0; i < 4; ++i) {
                const auto& m = matrix[i];
                const int g = lane / 4, c = lane % 4 * 2;
                const uint32_t low = transposed ? m[c][g] : m[g][c];
                const uint32_t high = transposed ? m[c + 1][g] : m[g][c + 1];
                static_cast<Mine*>(lanes[lane])->r[i] = low | high << 16;
            }
    }, where);
}

void ldmatrix_x4(uint32_t (&r)[4], const void* row, Where where) { ldmatrix<false>(r, row, where); }
void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, Where where) {
    ldmatrix<true>(r, row, where);
}

// An operand's register holds `kPacked` adjacent elements.
struct Bf16 {
    static constexpr int kPacked = 2;
    static float element(uint32_t word, int i) { return __uint_as_float(word >> 16 * i << 16); }
};
struct F16 {
    static constexpr int kPacked = 2;
    static float element(uint32_t word, int i) {
        return std::bit_cast<_Float16>(static_cast<uint16_t>(word >> 16 * i));
    }
};
struct Tf32 {
    static constexpr int kPacked = 1;
    static float element(uint32_t word, int) { return __uint_as_float(word & ~0x1FFFu); }
};

template <class Type>
static void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Where where) {
    struct Mine {
        float* d;
        const uint32_t *a, *b;
    } mine{d, a, b};
    emulator::warp_meeting(~0u, &mine, [](void** lanes, uint32_t mask) {
        if (mask != ~0u) block->fail("mma needs a full warp", Where::current());
        constexpr int kPacked = Type::kPacked, K = 8 * kPacked;
        float left[16][K], right[8][K];
        for (int lane = 0; lane < 32; ++lane) {
            const Mine& mine = *static_cast<Mine*>(lanes[lane]);
            const int g = lane / 4, q = lane % 4 * kPacked;
            for (int i = 0; i < kPacked; ++i) {
                for (int j = 0; j < 4; ++j)
                    left[g + 8 * (j % 2)][q + K / 2 * (j / 2) + i] = Type::element(mine.a[j], i);
                for (int j = 0; j < 2; ++j)
                    right[g][q + K / 2 * j + i] = Type::element(mine.b[j], i);
            }
        }
        for (int lane = 0; lane < 32; ++lane)
            for (int i = 0; i < 4; ++i) {
                const int row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
                float sum = 0;
                for (int k = 0; k < K; ++k) sum += left[row][k] * right[column][k];
                static_cast<Mine*>(lanes[lane])->d[i] += sum;
            }
    }, where);
}

void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                       Where where) {
    mma<Bf16>(d, a, b, where);
}
void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Where where) {
    mma<F16>(d, a, b, where);
}
void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Where where) {
    mma<Tf32>(d, a, b, where);
}

}  // namespace dfa
