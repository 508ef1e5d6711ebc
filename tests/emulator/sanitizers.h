// What the sanitizers want to be told; null where a build has none. This code itself must be
// compiled without -fsanitize=thread: it says which accesses are a kernel's.
#pragma once

#include <cstddef>

extern "C" {
#define DFA_WEAK __attribute__((weak))
DFA_WEAK void __sanitizer_start_switch_fiber(void**, const void*, size_t);
DFA_WEAK void __sanitizer_finish_switch_fiber(void*, const void**, size_t*);
DFA_WEAK void __asan_unpoison_memory_region(const volatile void*, size_t);
DFA_WEAK void* __tsan_get_current_fiber();
DFA_WEAK void* __tsan_create_fiber(unsigned);
DFA_WEAK void __tsan_destroy_fiber(void*);
DFA_WEAK void __tsan_switch_to_fiber(void*, unsigned);
DFA_WEAK void __tsan_acquire(void*);
DFA_WEAK void __tsan_release(void*);
DFA_WEAK void __tsan_read_range(void*, unsigned long);
DFA_WEAK void __tsan_write_range(void*, unsigned long);
#undef DFA_WEAK
}

namespace dfa::emulator {

// What happened before `release` of an address happens before what follows `acquire` of it.
inline void acquire(const void* at) {
    if (__tsan_acquire) __tsan_acquire(const_cast<void*>(at));
}
inline void release(const void* at) {
    if (__tsan_release) __tsan_release(const_cast<void*>(at));
}
inline void reads(const void* at, size_t bytes) {
    if (__tsan_read_range && bytes) __tsan_read_range(const_cast<void*>(at), bytes);
}
inline void writes(void* at, size_t bytes) {
    if (__tsan_write_range) __tsan_write_range(at, bytes);
}

}  // namespace dfa::emulator
