// A block of CUDA threads under way: who is ready, who waits where, and its shared memory.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "emulator.h"
#include "fiber.h"
#include "options.h"

namespace dfa::emulator {

struct Copy {  // an asynchronous one that has not landed
    void* to;
    unsigned char data[16];
    int group;
    Where where;
};

struct Strand : Thread {  // a CUDA thread
    Fiber fiber;
    bool waits = false, vote = false, fenced = false;
    Where where;
    std::vector<Copy> copies;
    int group = 0;  // of the copies that come
};

class Queue {  // of threads that can run: each at most once
  public:
    Strand*& operator[](size_t i) { return ring[(first + i) % kThreads]; }
    size_t size() const { return count; }
    void clear() { count = 0; }
    void push(Strand* strand) { (*this)[count++] = strand; }
    Strand* take(size_t i) {
        Strand* taken = (*this)[i];
        if (i == 0) ++first;
        else (*this)[i] = (*this)[count - 1];
        --count;
        return taken;
    }

  private:
    static constexpr size_t kThreads = 1024;
    Strand* ring[kThreads];
    size_t first = 0, count = 0;
};

struct Meeting {  // of lanes of a warp
    uint32_t mask = 0, arrived = 0;
    Where where;
    void* brought[32];
    Strand* lanes[32];
};

class Block {
  public:
    // Runs the block at `index` of the grid; the text of what went wrong, or nothing.
    std::string run(dim3 grid, dim3 threads, size_t shared_bytes, uint64_t index,
                    const std::function<void()>& kernel);

    bool barrier(bool predicate, Where where);
    void meet(uint32_t mask, void* mine, ForAll all, Where where);
    void fence();
    int atomic_add(int* at, int value);
    void expect_shared(const void* at, size_t bytes, const char* what, Where where);
    [[noreturn]] void fail(const std::string& what, Where where);
    Strand& me() { return *static_cast<Strand*>(self); }
    void* shared() { return memory; }

  private:
    static void entry();
    void begin(Strand& strand, int number, dim3 grid, dim3 threads, uint64_t index);
    void wait(Where where);
    void leave(bool forever = false);
    Strand* next();
    void ready(Strand* strand);
    std::string deadlock();
    uint64_t random();

    Fiber home;
    std::deque<Strand> strands;
    Queue queue;
    int count = 0, alive = 0;
    int arrived = 0;  // at the barrier
    bool any = false;
    Where barrier_where;
    std::vector<std::vector<Meeting>> warps;
    std::vector<uint64_t> priority;  // of each warp
    uint64_t state = 0;
    unsigned char* memory = nullptr;
    size_t memory_bytes = 0;
    std::vector<const void*> atomics;  // of this block
    std::string error;
    const std::function<void()>* kernel = nullptr;
};

inline constinit thread_local Block* block = nullptr;  // that this OS thread runs

}  // namespace dfa::emulator
