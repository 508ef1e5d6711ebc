// A stack of its own for every CUDA thread, and the switch from one to another.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace dfa::emulator {

class Fiber {
  public:
    Fiber() = default;
    Fiber(const Fiber&) = delete;
    ~Fiber();
    void adopt();                 // stands for the OS thread that calls
    void begin(void (*entry)());  // will run `entry`, which must never return, from its start
    void entered();               // first thing in `entry`
    void leave_for(Fiber& next, bool forever = false);

  private:
    void* bottom = nullptr;
    size_t bytes = 0;
    bool own = false;
    void* fake_stack = nullptr;  // AddressSanitizer's
    void* tsan = nullptr;        // ThreadSanitizer's
#if defined(__x86_64__)
    void* stack_pointer = nullptr;
#else
    ucontext_t context;
#endif
};

}  // namespace dfa::emulator
