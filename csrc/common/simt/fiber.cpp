#include "common/simt/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>

#if defined(__ELF__) && (defined(__x86_64__) || defined(__aarch64__))
#define GF_FIBER_ASM 1
#else
#include <ucontext.h>
#endif

namespace gf::emu {
namespace {

// Only the pages that a kernel touches become resident.
constexpr std::size_t kStackBytes = std::size_t{256} * 1024;

unsigned char* allocate_stack() {
  const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  void* memory =
      mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("simt: no memory for the stack of a CUDA thread");
  mprotect(memory, page, PROT_NONE);  // an overflow faults here instead of writing into the next stack
  return static_cast<unsigned char*>(memory) + page;
}

}  // namespace

#if defined(GF_FIBER_ASM)

struct Fiber {
  void* stack_pointer;
  unsigned char* stack;
};

// void gf_fiber_switch(void** save, void* load): pushes what a function must preserve, changes the stack, pops it
// there.
extern "C" void gf_fiber_switch(void** save, void* load);

#if defined(__x86_64__)
asm(R"(
.text
.p2align 4
.globl gf_fiber_switch
.hidden gf_fiber_switch
.type gf_fiber_switch, @function
gf_fiber_switch:
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
.size gf_fiber_switch, .-gf_fiber_switch
)");

namespace {
void* first_frame(unsigned char* top, FiberEntry entry) {
  void** slots = reinterpret_cast<void**>(top) - 8;  // six registers, the entry, and a null return address
  std::memset(slots, 0, 8 * sizeof(void*));
  slots[6] = reinterpret_cast<void*>(entry);  // `ret` leaves the stack 8 off a multiple of 16, as a call does
  return slots;
}
}  // namespace
#else
asm(R"(
.text
.p2align 4
.globl gf_fiber_switch
.hidden gf_fiber_switch
.type gf_fiber_switch, %function
gf_fiber_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size gf_fiber_switch, .-gf_fiber_switch
)");

namespace {
void* first_frame(unsigned char* top, FiberEntry entry) {
  void** slots = reinterpret_cast<void**>(top) - 20;
  std::memset(slots, 0, 20 * sizeof(void*));
  slots[11] = reinterpret_cast<void*>(entry);  // x30, where `ret` goes
  return slots;
}
}  // namespace
#endif

Fiber* fiber_main() {
  static Fiber main{nullptr, nullptr};
  return &main;
}

Fiber* fiber_create(FiberEntry entry) {
  Fiber* fiber = new Fiber{nullptr, allocate_stack()};
  fiber_reset(fiber, entry);
  return fiber;
}

void fiber_reset(Fiber* fiber, FiberEntry entry) {
  fiber->stack_pointer = first_frame(fiber->stack + kStackBytes, entry);
}

void fiber_switch(Fiber* from, Fiber* to) { gf_fiber_switch(&from->stack_pointer, to->stack_pointer); }

#else

struct Fiber {
  ucontext_t context;
  unsigned char* stack;
};

Fiber* fiber_main() {
  static Fiber main{};
  return &main;
}

Fiber* fiber_create(FiberEntry entry) {
  Fiber* fiber = new Fiber{};
  fiber->stack = allocate_stack();
  fiber_reset(fiber, entry);
  return fiber;
}

void fiber_reset(Fiber* fiber, FiberEntry entry) {
  getcontext(&fiber->context);
  fiber->context.uc_stack.ss_sp = fiber->stack;
  fiber->context.uc_stack.ss_size = kStackBytes;
  fiber->context.uc_link = nullptr;
  makecontext(&fiber->context, entry, 0);
}

void fiber_switch(Fiber* from, Fiber* to) { swapcontext(&from->context, &to->context); }

#endif

}  // namespace gf::emu
