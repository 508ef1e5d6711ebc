// How launches are run; from Python, `dfa_emulator_options` by ctypes.
#pragma once

#include <cstdint>

namespace dfa::emulator {

struct Options {
    // The order of a block's threads, and of the blocks. 0: in order; 1: reversed; else a seed: of
    // priorities among warps that change now and then, of a shuffle of the blocks.
    uint64_t threads = 0, blocks = 0;
    int workers = 1;  // OS threads that run blocks by turns
};
inline Options options;

}  // namespace dfa::emulator
