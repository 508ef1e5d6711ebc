// B's entries and Philox's words, one thread after another, for tests/emulated/test_project.py.
#include "philox.cuh"

#define TEST extern "C" __attribute__((visibility("default")))

TEST void words(const uint32_t* key, const uint32_t* counter, uint32_t* out) {
    const auto [word] = dfa::philox(key[0], key[1], counter[0], counter[1], counter[2], counter[3]);
    for (int i = 0; i < 4; ++i) out[i] = word[i];
}

// `width` entries of row k, `at_once` of them at a time.
template <int at_once>
static void fill(dfa::Distribution distribution, uint64_t seed, int stream, int k, int width,
                 float* out) {
    for (int j = 0; j < width; j += at_once) {
        float entry[at_once];
        dfa::entries_of(distribution, seed, stream, k, j, entry);
        for (int i = 0; i < at_once; ++i) out[j + i] = entry[i];
    }
}

TEST void entries(int code, uint64_t seed, int stream, int k, int width, int at_once, float* out) {
    const auto distribution = static_cast<dfa::Distribution>(code);
    if (at_once == 16) return fill<16>(distribution, seed, stream, k, width, out);
    if (at_once == 8) return fill<8>(distribution, seed, stream, k, width, out);
    if (at_once == 4) return fill<4>(distribution, seed, stream, k, width, out);
    for (int j = 0; j < width; ++j) out[j] = dfa::entry_of(distribution, seed, stream, k, j);
}

TEST float log_unit(uint32_t word) { return dfa::log_unit(word); }
