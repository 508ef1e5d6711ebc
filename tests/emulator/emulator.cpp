// Launches: the blocks of a grid, one after the other, on one OS thread or by turns on several.
#include "emulator.h"

#include <algorithm>
#include <memory>
#include <thread>

#include "block.h"

namespace dfa::emulator {

void* shared_memory() { return block->shared(); }
bool block_barrier(bool predicate, Where where) { return block->barrier(predicate, where); }
void warp_meeting(uint32_t mask, void* mine, ForAll all, Where where) {
    block->meet(mask, mine, all, where);
}
void fence() { block->fence(); }
int atomic_add(int* at, int value) { return block->atomic_add(at, value); }

static std::vector<uint64_t> block_order(uint64_t blocks) {
    std::vector<uint64_t> order(blocks);
    for (uint64_t i = 0; i < blocks; ++i) order[i] = i;
    if (options.blocks == 1) std::reverse(order.begin(), order.end());
    if (options.blocks > 1) {
        uint64_t state = options.blocks;
        for (uint64_t i = blocks; i > 1; --i) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            std::swap(order[i - 1], order[(state >> 33) % i]);
        }
    }
    return order;
}

Error run(dim3 grid, dim3 threads, size_t shared_bytes, const std::function<void()>& kernel) {
    static thread_local std::string error;
    static thread_local std::unique_ptr<Block> kept;  // with its stacks, for the next launch
    constexpr size_t kMostShared = 227 << 10;
    if (threads.x == 0 || threads.x > 1024 || threads.y * threads.z != 1) return "bad block size";
    if (shared_bytes > kMostShared) return "more than 227 KiB of shared memory";
    const auto order = block_order(uint64_t{grid.x} * grid.y * grid.z);
    const size_t workers = std::max(1, options.workers);
    std::vector<std::string> errors(workers);
    auto work = [&](size_t worker, Block& mine) {
        for (size_t i = worker; i < order.size() && errors[worker].empty(); i += workers) {
            errors[worker] = mine.run(grid, threads, shared_bytes, order[i], kernel);
            if (!errors[worker].empty())
                errors[worker] = "block " + std::to_string(order[i]) + ": " + errors[worker];
        }
    };
    if (workers == 1) {
        if (!kept) kept = std::make_unique<Block>();
        work(0, *kept);
        if (!errors[0].empty()) kept.reset();
    } else {
        std::vector<std::thread> others;
        for (size_t worker = 0; worker < workers; ++worker)
            others.emplace_back([&, worker] { Block mine; work(worker, mine); });
        for (auto& other : others) other.join();
    }
    for (const auto& text : errors)
        if (!text.empty()) return (error = text).c_str();
    return kSuccess;
}

}  // namespace dfa::emulator

// For ctypes: how the launches that follow are run.
extern "C" __attribute__((visibility("default"))) void dfa_emulator_options(uint64_t threads,
                                                                            uint64_t blocks,
                                                                            int workers) {
    dfa::emulator::options = {threads, blocks, workers};
}
