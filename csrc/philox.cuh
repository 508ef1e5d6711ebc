// The entries of B, which is never stored: Philox4x32-10 (Salmon et al., SC'11).
//
//     B[k, j] = f(philox(key = seed, counter = (j / entries, k, stream, 0)), j % entries)
//
// One function a distribution, of its name in dfa_kernels.feedback: from the words of a call to an
// entry, or for `normal` to the four of them.
#pragma once

#include "platform.h"
#include "tables.h"

namespace dfa {

struct Words {
    uint32_t word[4];
};

__device__ __forceinline__ Words philox(uint32_t key0, uint32_t key1, uint32_t c0, uint32_t c1,
                                        uint32_t c2, uint32_t c3) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const uint32_t high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
        const uint32_t high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
        c0 = high1 ^ c1 ^ key0;
        c1 = low1;
        c2 = high0 ^ c3 ^ key1;
        c3 = low0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

// The words of row k of B, for the columns of a block.
__device__ __forceinline__ Words words_of(uint64_t seed, int32_t stream, int32_t k, int32_t block) {
    return philox(uint32_t(seed), uint32_t(seed >> 32), uint32_t(block), uint32_t(k),
                  uint32_t(stream), 0);
}

// ±1 by a bit of the word: 128 entries a call.
__device__ __forceinline__ float rademacher(uint32_t word, int bit) {
    return word >> bit & 1 ? 1.0f : -1.0f;
}

// (2·byte − 255) / 256: 16 entries a call.
__device__ __forceinline__ float uniform(uint32_t word, int byte) {
    return (float(word >> 8 * byte & 0xFF) - 127.5f) * 0.0078125f;
}

// ln((word + ½)·2⁻³²), whose argument fp32 would round to 1 at the upper end.
//
// There it is ln(1 − r) with r = (~word + ½)·2⁻³²: Kahan's ln(t)·r / (1 − t) with t = fl(1 − r).
__device__ __forceinline__ float log_unit(uint32_t word) {
    const bool high = word > 0x7FFFFFFFu;
    const float r = (float(high ? ~word : word) + 0.5f) * 2.3283064365386963e-10f;
    const float t = high ? 1.0f - r : r;
    if (t == 1.0f) return -r;
    const float log = logf(t);
    return high ? log * __fdividef(r, 1.0f - t) : log;
}

// Box–Muller: 4 entries a call, a word for the radius and one for the angle of each pair.
__device__ __forceinline__ void normal(const Words& words, float (&entry)[4]) {
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
        const float square = -2.0f * log_unit(words.word[2 * pair]);  // 2⁻³² at the least
        const float radius = square * rsqrtf(square);
        // In units of π, and in (−1, 1): the same angle, and the more exact the smaller it is.
        const auto turn = float(int32_t(words.word[2 * pair + 1]));
        const float angle = (turn + 0.5f) * 4.656612873077393e-10f;
        float sine, cosine;
        sincospif(angle, &sine, &cosine);
        entry[2 * pair] = radius * cosine;
        entry[2 * pair + 1] = radius * sine;
    }
}

// COUNT adjacent entries of row k of B from column j, a multiple of COUNT; COUNT 4, 8 or 16.
template <int COUNT>
__device__ __forceinline__ void entries_of(Distribution distribution, uint64_t seed, int32_t stream,
                                           int32_t k, int32_t j, float (&entry)[COUNT]) {
    static_assert(COUNT == 4 || COUNT == 8 || COUNT == 16, "whole calls, or whole parts of one");
    if (distribution == Distribution::rademacher) {
        const Words words = words_of(seed, stream, k, j / 128);
        const int place = j / 32 % 4;  // chosen without an array that has an address
        uint32_t word = place & 1 ? words.word[1] : words.word[0];
        const uint32_t upper = place & 1 ? words.word[3] : words.word[2];
        word = (place & 2 ? upper : word) >> j % 32;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) entry[i] = rademacher(word, i);
    } else if (distribution == Distribution::uniform) {
        const Words words = words_of(seed, stream, k, j / 16);
#pragma unroll
        for (int quad = 0; quad < 4; ++quad) {
#pragma unroll
            for (int part = 0; part < COUNT / 4; ++part) {
                if (quad == j / 4 % 4 + part) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) entry[4 * part + i] = uniform(words.word[quad], i);
                }
            }
        }
    } else {
#pragma unroll
        for (int quad = 0; quad < COUNT / 4; ++quad) {
            float four[4];
            normal(words_of(seed, stream, k, j / 4 + quad), four);
#pragma unroll
            for (int i = 0; i < 4; ++i) entry[4 * quad + i] = four[i];
        }
    }
}

// A single entry: a call for each, where nothing is shared.
__device__ __forceinline__ float entry_of(Distribution distribution, uint64_t seed, int32_t stream,
                                          int32_t k, int32_t j) {
    float four[4];
    entries_of<4>(distribution, seed, stream, k, j & ~3, four);
    return j & 2 ? (j & 1 ? four[3] : four[2]) : (j & 1 ? four[1] : four[0]);
}

}  // namespace dfa
