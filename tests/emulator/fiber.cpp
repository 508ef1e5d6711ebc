#include "fiber.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdlib>

#include "sanitizers.h"

#if defined(__x86_64__)
// Saves what the calling convention wants kept, and returns on the other stack.
extern "C" __attribute__((visibility("hidden"))) void dfa_switch_stack(void** save, void* load);
asm(R"(
.text
.hidden dfa_switch_stack
.globl dfa_switch_stack
.type dfa_switch_stack, @function
dfa_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size dfa_switch_stack, . - dfa_switch_stack
)");
#endif

namespace dfa::emulator {

constexpr size_t kStack = 512 << 10, kGuard = 4 << 10;

void Fiber::adopt() {
    pthread_attr_t attributes;
    if (pthread_getattr_np(pthread_self(), &attributes)) abort();
    pthread_attr_getstack(&attributes, &bottom, &bytes);
    pthread_attr_destroy(&attributes);
    if (__tsan_get_current_fiber) tsan = __tsan_get_current_fiber();
}

void Fiber::begin(void (*entry)()) {
    if (!own) {
        void* memory = mmap(nullptr, kGuard + kStack, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED || mprotect(memory, kGuard, PROT_NONE)) abort();
        bottom = static_cast<char*>(memory) + kGuard;
        bytes = kStack;
        own = true;
        if (__tsan_create_fiber) tsan = __tsan_create_fiber(0);
    }
    if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(bottom, bytes);
    fake_stack = nullptr;
#if defined(__x86_64__)
    void** top = reinterpret_cast<void**>(static_cast<char*>(bottom) + bytes - 64);
    *top = reinterpret_cast<void*>(entry);
    stack_pointer = top - 6;
#else
    getcontext(&context);
    context.uc_stack.ss_sp = bottom;
    context.uc_stack.ss_size = bytes;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
#endif
}

Fiber::~Fiber() {
    if (!own) return;
    if (__tsan_destroy_fiber) __tsan_destroy_fiber(tsan);
    if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(bottom, bytes);
    munmap(static_cast<char*>(bottom) - kGuard, kGuard + kStack);
}

void Fiber::entered() {
    if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
}

void Fiber::leave_for(Fiber& next, bool forever) {
    if (__sanitizer_start_switch_fiber)
        __sanitizer_start_switch_fiber(forever ? nullptr : &fake_stack, next.bottom, next.bytes);
    constexpr unsigned without_order = 1;
    if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(next.tsan, without_order);
#if defined(__x86_64__)
    dfa_switch_stack(&stack_pointer, next.stack_pointer);
#else
    swapcontext(&context, &next.context);
#endif
    if (__sanitizer_finish_switch_fiber)
        __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}

}  // namespace dfa::emulator
