// Fibers: stacks that one OS thread switches between, so that a CUDA thread can stop in the middle at a barrier.
#pragma once

#include <cstddef>

namespace gf::emu {

using FiberEntry = void (*)();

// A stack and, while it does not run, the registers needed to go on. Created once and reused.
struct Fiber;

Fiber* fiber_main();                               // stands for the caller's own stack
Fiber* fiber_create(FiberEntry entry);             // entry starts at the first switch and must never return
void fiber_reset(Fiber* fiber, FiberEntry entry);  // forgets where it stopped
void fiber_switch(Fiber* from, Fiber* to);

}  // namespace gf::emu
