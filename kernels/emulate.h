// Runs CUDA kernels on the host, for tests: every thread of a block is a fiber, blocks run one after the other.
// Barriers and warp collectives are real meeting points: a thread that misses one is an error, not a hang. Threads run
// until they wait, in ascending order, or in descending order with ACE_FAST_EMULATE_ORDER=reversed: a kernel that lacks
// a barrier gives different results. Shared memory starts as NaN and is guarded. Include native.cuh, not this file.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct uint3 { unsigned x, y, z; };
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace ace::emulate {

constexpr int kMaxThreads = 1024, kSlot = 64, kGuard = 64;
constexpr size_t kStack = 128 << 10, kMaxShared = 101376;  // what a block may ask for on sm_86 and sm_89
constexpr unsigned char kPoison = 0xff, kGuardByte = 0xa5;

// ---- fibers --------------------------------------------------------------------------------------------------------

#if defined(__x86_64__)
using Context = void*;

// Saves what the calling convention preserves, and goes on where `to` was saved. No system call, unlike swapcontext.
__attribute__((naked, noinline)) static void switch_context(Context*, Context*) {
  asm volatile(
      "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq (%rsi), %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
}

inline void make_context(Context& context, char* stack, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + kStack) - 2;
  *top = reinterpret_cast<void*>(entry);
  top[1] = nullptr;
  context = top - 6;
}
#else
using Context = ucontext_t;

static void switch_context(Context* from, Context* to) { swapcontext(from, to); }

inline void make_context(Context& context, char* stack, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = kStack;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}
#endif

// A stack with an unmapped page below it.
inline char* new_stack() {
  constexpr size_t page = 64 << 10;
  void* p = mmap(nullptr, kStack + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED || mprotect(p, page, PROT_NONE)) throw std::runtime_error("emulation: no memory for a stack");
  return static_cast<char*>(p) + page;
}

// ---- state of the running block ------------------------------------------------------------------------------------

enum class Wait : uint8_t { ready, block, warp, done };

struct Copy { void* to; const void* from; int bytes, valid, group; };

struct Fiber {
  Context context;
  char* stack = nullptr;
  uint3 index;
  Wait wait;
  const char* what;  // name of the collective that it waits at
  unsigned mask;
  int bytes, group;  // size of what it gives to the collective; number of committed groups of copies
  alignas(16) char given[kSlot], taken[kSlot];  // taken: what it gave, kept until its next collective
  std::vector<Copy> copies;
};

struct Region {
  const void* key;
  std::unique_ptr<char[]> memory;
  char* data;
  size_t bytes;
};

struct Machine {
  std::mutex mutex;
  std::unique_ptr<Fiber[]> fibers;
  Context scheduler;
  int current = 0, threads = 0;
  bool reversed = false;
  const char* kernel = "";
  std::string error;
  std::vector<Region> shared;  // the first is the dynamic one
  void (*call)(void*) = nullptr;
  void* closure = nullptr;
};
inline Machine machine;

inline std::string name_of(int thread) { return "thread " + std::to_string(thread); }

inline std::string where() {
  return std::string(machine.kernel) + " (emulated), block (" + std::to_string(blockIdx.x) + ", " +
         std::to_string(blockIdx.y) + ", " + std::to_string(blockIdx.z) + "): ";
}

inline void leave() {
  Fiber& self = machine.fibers[machine.current];
  switch_context(&self.context, &machine.scheduler);
}

// Ends the launch with an error, from inside a thread; the other fibers are abandoned.
[[noreturn]] inline void fail(const std::string& message) {
  machine.error = where() + name_of(machine.current) + " " + message;
  for (;;) leave();
}

inline void run_fiber() {
  machine.call(machine.closure);
  machine.fibers[machine.current].wait = Wait::done;
  for (;;) leave();
}

inline void resume(int thread) {
  Fiber& fiber = machine.fibers[thread];
  machine.current = thread;
  threadIdx = fiber.index;
  switch_context(&machine.scheduler, &fiber.context);
  if (!machine.error.empty()) throw std::runtime_error(machine.error);
}

// ---- shared memory -------------------------------------------------------------------------------------------------

inline char* add_region(const void* key, size_t bytes) {
  Region r{key, std::make_unique<char[]>(bytes + kGuard + 128), nullptr, bytes};
  r.data = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(r.memory.get()) + 127) / 128 * 128);
  std::memset(r.data, kPoison, bytes);
  std::memset(r.data + bytes, kGuardByte, kGuard);
  machine.shared.push_back(std::move(r));
  return machine.shared.back().data;
}

// The variable declared at one place of a kernel: `key` is an address of its own for each.
inline void* shared_variable(const void* key, size_t bytes) {
  for (const Region& r : machine.shared)
    if (r.key == key) return r.data;
  return add_region(key, bytes);
}

inline void check_guards() {
  for (const Region& r : machine.shared)
    for (int i = 0; i < kGuard; ++i)
      if (static_cast<unsigned char>(r.data[r.bytes + i]) != kGuardByte)
        throw std::runtime_error(where() + "wrote byte " + std::to_string(r.bytes + i) + " of " +
                                 std::to_string(r.bytes) + " bytes of " + (r.key ? "static" : "dynamic") +
                                 " shared memory");
}

// ---- collectives ---------------------------------------------------------------------------------------------------

inline void sync_block() {
  Fiber& self = machine.fibers[machine.current];
  self.wait = Wait::block;
  self.what = "__syncthreads";
  leave();
}

// All lanes of `mask` meet; afterwards lane i's value lies in gift<T>(i) until the caller's next collective.
inline void meet(const char* what, unsigned mask, const void* value = nullptr, int bytes = 0) {
  Fiber& self = machine.fibers[machine.current];
  if (!(mask >> (machine.current % 32) & 1)) fail(std::string("is not in the mask of its own ") + what);
  self.wait = Wait::warp;
  self.what = what;
  self.mask = mask;
  self.bytes = bytes;
  if (bytes) std::memcpy(self.given, value, bytes);
  leave();
}

template <class T>
inline T gift(int lane) {
  T value;
  std::memcpy(&value, machine.fibers[machine.current / 32 * 32 + lane].taken, sizeof(T));
  return value;
}

template <class T>
inline T exchange(const char* what, unsigned mask, T value, int lane) {
  static_assert(sizeof(T) <= kSlot);
  meet(what, mask, &value, sizeof(T));
  if (!(mask >> lane & 1)) fail("reads lane " + std::to_string(lane) + ", which is not in the mask of " + what);
  return gift<T>(lane);
}

[[noreturn]] inline void diverged(int a, int b) {
  const Fiber &first = machine.fibers[a], &second = machine.fibers[b];
  const std::string does = second.wait == Wait::done   ? "has returned"
                           : second.what == first.what ? "waits there with another mask"
                                                       : std::string("waits at ") + second.what;
  throw std::runtime_error(where() + name_of(a) + " waits at " + first.what + ", but " + name_of(b) + " " + does);
}

// The lane, counted from `begin`, that the group of thread `a` still waits for; -1 when all have met.
inline int missing(int a, int begin, int end) {
  const Fiber& first = machine.fibers[a];
  for (int lane = 0; lane < 32; ++lane) {
    if (!(first.mask >> lane & 1)) continue;
    if (begin + lane >= end)
      throw std::runtime_error(where() + first.what + " names lane " + std::to_string(lane) +
                               ", but the block ends before it");
    const Fiber& other = machine.fibers[begin + lane];
    if (other.wait != Wait::warp || other.mask != first.mask || std::strcmp(other.what, first.what)) return lane;
  }
  return -1;
}

// Releases every group of lanes that has met at a collective; false when nobody in the warp waits at one.
inline bool release_warp(int begin, int end) {
  int stuck = -1;
  bool any = false;
  for (int a = begin; a < end; ++a) {
    if (machine.fibers[a].wait != Wait::warp) continue;
    const unsigned mask = machine.fibers[a].mask;
    if (missing(a, begin, end) >= 0) {
      stuck = a;
      continue;
    }
    for (int lane = 0; lane < 32; ++lane) {
      if (!(mask >> lane & 1)) continue;
      Fiber& other = machine.fibers[begin + lane];
      std::memcpy(other.taken, other.given, other.bytes);
      other.wait = Wait::ready;
    }
    any = true;
  }
  if (stuck >= 0 && !any) diverged(stuck, begin + missing(stuck, begin, end));
  return any;
}

// ---- the launch ----------------------------------------------------------------------------------------------------

inline int in_order(int i, int n) { return machine.reversed ? n - 1 - i : i; }

// Until every thread of the warp has returned or waits for the block.
inline void run_warp(int begin, int end) {
  do {
    for (int i = 0; i < end - begin; ++i) {
      const int thread = begin + in_order(i, end - begin);
      if (machine.fibers[thread].wait == Wait::ready) resume(thread);
    }
  } while (release_warp(begin, end));
}

inline bool release_block() {
  Fiber* fibers = machine.fibers.get();
  int waits = -1, done = -1;
  for (int i = 0; i < machine.threads; ++i) (fibers[i].wait == Wait::done ? done : waits) = i;
  if (waits >= 0 && done >= 0) diverged(waits, done);
  for (int i = 0; i < machine.threads && waits >= 0; ++i) fibers[i].wait = Wait::ready;
  return waits >= 0;
}

inline void run_block(size_t dynamic) {
  machine.shared.clear();
  add_region(nullptr, dynamic);
  for (int i = 0; i < machine.threads; ++i) {
    Fiber& fiber = machine.fibers[i];
    if (!fiber.stack) fiber.stack = new_stack();
    make_context(fiber.context, fiber.stack, run_fiber);
    const unsigned x = blockDim.x, y = blockDim.y, t = i;
    fiber.index = {t % x, t / x % y, t / (x * y)};
    fiber.wait = Wait::ready;
    fiber.group = 0;
    fiber.copies.clear();
  }
  const int warps = (machine.threads + 31) / 32;
  do {
    for (int i = 0; i < warps; ++i) {
      const int begin = in_order(i, warps) * 32;
      run_warp(begin, std::min(begin + 32, machine.threads));
    }
  } while (release_block());
  check_guards();
}

// body() runs one thread of the kernel.
template <class F>
void run(const char* kernel, dim3 grid, dim3 block, size_t dynamic, F body) {
  const std::lock_guard lock(machine.mutex);
  const int64_t threads = int64_t(block.x) * block.y * block.z;
  const std::string name = std::string(kernel) + " (emulated): ";
  if (threads < 1 || threads > kMaxThreads)
    throw std::runtime_error(name + "a block must have 1 to 1024 threads, got " + std::to_string(threads));
  if (dynamic > kMaxShared)
    throw std::runtime_error(name + "asks for " + std::to_string(dynamic) + " bytes of shared memory, has " +
                             std::to_string(kMaxShared));
  const char* order = std::getenv("ACE_FAST_EMULATE_ORDER");
  if (!machine.fibers) machine.fibers = std::make_unique<Fiber[]>(kMaxThreads);
  machine.reversed = order && !std::strcmp(order, "reversed");
  machine.kernel = kernel;
  machine.threads = static_cast<int>(threads);
  machine.error.clear();
  machine.call = [](void* f) { (*static_cast<F*>(f))(); };
  machine.closure = &body;
  blockDim = block;
  gridDim = grid;
  const int64_t blocks = int64_t(grid.x) * grid.y * grid.z;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t b = machine.reversed ? blocks - 1 - i : i;
    blockIdx = {unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y)};
    run_block(dynamic);
  }
}

// ---- asynchronous copies: carried out as late as the waits allow, so that a missing wait shows ----------------------

inline void copy_async(void* to, const void* from, int bytes, int valid) {
  if (reinterpret_cast<uintptr_t>(to) % bytes || (valid && reinterpret_cast<uintptr_t>(from) % bytes))
    fail("copies " + std::to_string(bytes) + " bytes from or to an address that is not a multiple of it");
  Fiber& self = machine.fibers[machine.current];
  self.copies.push_back({to, from, bytes, valid, self.group});
}

inline void copy_commit() { ++machine.fibers[machine.current].group; }

inline void copy_wait(int left) {
  Fiber& self = machine.fibers[machine.current];
  size_t done = 0;
  for (; done < self.copies.size() && self.copies[done].group < self.group - left; ++done) {
    const Copy& c = self.copies[done];
    std::memset(c.to, 0, c.bytes);
    std::memcpy(c.to, c.from, c.valid);
  }
  self.copies.erase(self.copies.begin(), self.copies.begin() + done);
}

}  // namespace ace::emulate

// ---- CUDA's names --------------------------------------------------------------------------------------------------

inline void __syncthreads() { ace::emulate::sync_block(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { ace::emulate::meet("__syncwarp", mask); }

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int lane = ace::emulate::machine.current % 32;
  return ace::emulate::exchange("__shfl_sync", mask, value, lane / width * width + (source & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32) {
  const int lane = ace::emulate::machine.current % 32, other = lane ^ flip;
  return ace::emulate::exchange("__shfl_xor_sync", mask, value, other / width > lane / width ? lane : other);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const int lane = ace::emulate::machine.current % 32, other = lane + int(by);
  return ace::emulate::exchange("__shfl_down_sync", mask, value, other / width == lane / width ? other : lane);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const int lane = ace::emulate::machine.current % 32, other = lane - int(by);
  return ace::emulate::exchange("__shfl_up_sync", mask, value, other >= lane / width * width ? other : lane);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  ace::emulate::meet("__ballot_sync", mask, &predicate, sizeof(int));
  unsigned votes = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) votes |= unsigned(ace::emulate::gift<int>(lane) != 0) << lane;
  return votes;
}

template <class T>
T atomicAdd(T* p, T value) {
  const T before = *p;
  *p = before + value;
  return before;
}
template <class T>
T atomicMax(T* p, T value) {
  const T before = *p;
  *p = std::max(before, value);
  return before;
}
template <class T>
T __ldg(const T* p) { return *p; }
