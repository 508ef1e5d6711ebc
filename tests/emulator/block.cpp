#include "block.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>

#include "sanitizers.h"

namespace dfa::emulator {

static std::string named(Where where) {
    return std::string(where.file_name()) + ":" + std::to_string(where.line());
}

static bool same(Where a, Where b) {
    return a.line() == b.line() && !std::strcmp(a.file_name(), b.file_name());
}

// Threads ---------------------------------------------------------------------------------------

uint64_t Block::random() {  // xorshift
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state;
}

void Block::ready(Strand* strand) {
    strand->waits = false;
    queue.push(strand);
}

Strand* Block::next() {
    const size_t waiting = queue.size();
    if (waiting == 0) return nullptr;
    if (options.threads == 0) return queue.take(0);
    if (options.threads == 1) return queue.take(waiting - 1);
    // A warp of high priority runs far ahead of the others; now and then that changes.
    if (random() % 64 == 0) priority[random() % priority.size()] = random();
    const size_t first = random() % waiting;
    size_t at = first;
    for (size_t i = 0; i < waiting; ++i) {
        const size_t other = (first + i) % waiting;
        if (priority[queue[other]->warp] > priority[queue[at]->warp]) at = other;
    }
    return queue.take(at);
}

void Block::leave(bool forever) {
    Strand& from = me();
    Strand* to = next();
    if (to == &from) return;
    if (!to && alive && error.empty()) error = deadlock();
    self = to;
    from.fiber.leave_for(to ? to->fiber : home, forever);
}

void Block::wait(Where where) {
    me().where = where;
    leave();
}

void Block::fail(const std::string& what, Where where) {
    if (error.empty())
        error = named(where) + ": thread " + std::to_string(self->thread.x) + ": " + what;
    me().fiber.leave_for(home);
    abort();
}

std::string Block::deadlock() {
    std::map<std::string, int> places;
    for (int i = 0; i < count; ++i)
        if (strands[i].waits) ++places[named(strands[i].where)];
    std::string text = "deadlock:";
    for (const auto& [place, threads] : places)
        text += " " + std::to_string(threads) + " threads wait at " + place + ";";
    return text + " " + std::to_string(count - alive) + " have returned";
}

void Block::entry() {
    Block& my = *block;
    my.me().fiber.entered();
    acquire(&my);
    (*my.kernel)();
    Strand& me = my.me();
    if (my.arrived) my.fail("returned while others wait at __syncthreads", my.barrier_where);
    if (!me.copies.empty())
        my.fail("returned before this cp.async landed", me.copies.front().where);
    --my.alive;
    release(&my);
    my.leave(true);
    abort();
}

void Block::begin(Strand& strand, int number, dim3 grid, dim3 threads, uint64_t index) {
    strand.thread = {static_cast<unsigned>(number), 0, 0};
    strand.block = {static_cast<unsigned>(index % grid.x),
                    static_cast<unsigned>(index / grid.x % grid.y),
                    static_cast<unsigned>(index / (uint64_t{grid.x} * grid.y))};
    strand.threads = threads, strand.blocks = grid;
    strand.lane = number % 32, strand.warp = number / 32;
    strand.copies.clear(), strand.copies.reserve(256), strand.group = 0;
    strand.fenced = false;
    strand.fiber.begin(entry);
    ready(&strand);
}

// What grows while threads run has its memory beforehand: a vector that moves is a race between
// them, for ThreadSanitizer.
std::string Block::run(dim3 grid, dim3 threads, size_t shared_bytes, uint64_t index,
                       const std::function<void()>& function) {
    block = this;
    kernel = &function;
    error.clear();
    count = alive = static_cast<int>(threads.x);
    arrived = 0, any = false;
    state = (options.threads + 1) * 0x9E3779B97F4A7C15u ^ (index + 1) * 0xD1B54A32D192ED03u;
    warps.resize((count + 31) / 32);
    for (auto& meetings : warps) meetings.clear(), meetings.reserve(32);
    priority.resize(warps.size());
    for (auto& value : priority) value = random();
    atomics.clear(), atomics.reserve(1024);
    while (strands.size() < threads.x) strands.emplace_back();
    queue.clear();
    for (int i = 0; i < count; ++i) begin(strands[i], i, grid, threads, index);

    // Not a byte more than was asked for, so that AddressSanitizer sees the end.
    void* pointer = nullptr;
    if (posix_memalign(&pointer, 1024, std::max<size_t>(shared_bytes, 1))) abort();
    memory = static_cast<unsigned char*>(pointer);
    memory_bytes = shared_bytes;
    std::memset(memory, 0xFF, shared_bytes);  // NaN of every type

    home.adopt();
    release(this);
    self = next();
    home.leave_for(me().fiber);
    acquire(this);
    self = nullptr;
    block = nullptr;
    free(memory);
    return error;
}

// Waiting for each other ----------------------------------------------------------------------------

bool Block::barrier(bool predicate, Where where) {
    if (alive < count) fail("__syncthreads, but a thread has returned", where);
    if (arrived && !same(where, barrier_where))
        fail("__syncthreads, while others are at that of " + named(barrier_where), where);
    barrier_where = where;
    any = any || predicate;
    release(&arrived);
    me().waits = true;
    if (++arrived == count) {
        arrived = 0;
        for (int i = 0; i < count; ++i) strands[i].vote = any, ready(&strands[i]);
        any = false;
    }
    wait(where);
    acquire(&arrived);
    return me().vote;
}

void Block::meet(uint32_t mask, void* mine, ForAll all, Where where) {
    Strand& strand = me();
    const uint32_t bit = 1u << strand.lane;
    const int lanes = count - strand.warp * 32;
    if (lanes < 32) mask &= (1u << lanes) - 1;
    if (!(mask & bit)) fail("a warp operation without the lane that calls it", where);
    auto& meetings = warps[strand.warp];
    Meeting* meeting = nullptr;
    for (auto& other : meetings)
        if (other.arrived && other.mask & bit) meeting = &other;
    if (meeting && (meeting->mask != mask || !same(meeting->where, where)))
        fail("the warp diverges: other lanes are at " + named(meeting->where), where);
    for (auto& other : meetings)
        if (!meeting && !other.arrived) meeting = &other;
    if (!meeting) meeting = &meetings.emplace_back();
    meeting->mask = mask, meeting->where = where;
    meeting->arrived |= bit;
    meeting->brought[strand.lane] = mine;
    meeting->lanes[strand.lane] = &strand;
    release(&meetings);
    strand.waits = true;
    if (meeting->arrived == mask) {
        acquire(&meetings);
        if (all) all(meeting->brought, mask);
        release(&meetings);
        for (int lane = 0; lane < 32; ++lane)
            if (mask >> lane & 1) ready(meeting->lanes[lane]);
        meeting->arrived = 0;
    }
    wait(where);
    acquire(&meetings);
}

// The memory model, for ThreadSanitizer: an atomic operation of a thread that has passed a fence
// publishes what happened before; a fence takes in what the block's atomics may have seen. An atomic
// operation is ordered before what follows one that has seen it, so it is no race with that.
void Block::fence() {
    me().fenced = true;
    for (const void* at : atomics) acquire(at);
}

int Block::atomic_add(int* at, int value) {
    if (me().fenced) release(at);
    if (std::find(atomics.begin(), atomics.end(), at) == atomics.end()) atomics.push_back(at);
    return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
}

void Block::expect_shared(const void* at, size_t bytes, const char* what, Where where) {
    const auto* from = static_cast<const unsigned char*>(at);
    if (from < memory || from + bytes > memory + memory_bytes)
        fail(std::string(what) + " is outside shared memory", where);
    if (reinterpret_cast<uintptr_t>(at) % 16) fail(std::string(what) + " is not aligned", where);
}

}  // namespace dfa::emulator
