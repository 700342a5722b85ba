#include "common/simt/runtime.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/simt/fiber.h"

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace gf::emu {

std::uint64_t block_epoch = 0;

namespace {

constexpr int kWarp = 32;
constexpr std::size_t kCanaryBytes = 64;
constexpr unsigned char kCanary = 0xa5;

enum class Order { kForward, kReverse, kRandom };
enum class State : unsigned char { kFresh, kReady, kInBlock, kInWarp, kDone };

struct Thread {
  Fiber* fiber;
  // What it waits for, while kInBlock or kInWarp.
  const char* what;
  Site site;
  unsigned mask;
  void* payload;
  Combine combine;
};

struct WarpCount {
  int waiting;  // at a warp collective
  int absent;   // exited, or past the end of the block
};

// The grid that runs. Guarded by `mutex`; used by one OS thread at a time.
struct Grid {
  std::mutex mutex;
  const char* kernel;
  void (*body)(void*);
  void* closure;
  int threads;
  Order order;
  std::minstd_rand random;
  std::vector<uint3> index;      // by thread
  std::vector<int> start_order;  // the order in which threads start and leave a barrier
  std::vector<unsigned char> shared;
  std::size_t shared_bytes;

  // The block that runs.
  std::vector<State> state;
  std::vector<Thread> thread;
  std::vector<WarpCount> warp;
  std::vector<int> ready;  // a queue; the front is ready[ready_head]
  std::size_t ready_head;
  int started;
  int done;
  int in_block;   // waiting at the block barrier
  int in_favour;  // of them, with a true predicate
  int first_in_block;
  BarrierVote vote;

  int current = -1;  // the running thread; -1 in the scheduler
  Fiber* fiber = nullptr;
  std::vector<Fiber*> fibers;
  std::vector<Fiber*> free_fibers;
  std::string error;
};

Grid& grid() {
  static Grid* instance = new Grid;  // never destroyed: its fibers may not outlive their stacks
  return *instance;
}

std::string format_text(const char* format, std::va_list arguments) {
  char text[1024];
  std::vsnprintf(text, sizeof text, format, arguments);
  return text;
}

template <class Index>
std::string index_text(Index i) {
  return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}

std::string site_text(const char* what, Site site) {
  return std::string(what) + " (" + site.file + ":" + std::to_string(site.line) + ")";
}

std::string where_text(const Grid& g) {
  std::string text = std::string("simt kernel ") + g.kernel + ", block " + index_text(blockIdx);
  if (g.current >= 0) text += ", thread " + index_text(g.index[static_cast<std::size_t>(g.current)]);
  return text + ": ";
}

[[noreturn]] void fail_with(Grid& g, const std::string& message) {
  g.error = where_text(g) + message;
  if (g.current < 0) throw std::runtime_error(g.error);
  fiber_switch(g.fiber, fiber_main());
  std::abort();  // a failed fiber is reset, never resumed
}

void make_ready(Grid& g, int t) {
  g.state[static_cast<std::size_t>(t)] = State::kReady;
  g.ready.push_back(t);
}

void release_block_if_complete(Grid& g) {
  if (g.in_block == 0 || g.in_block + g.done != g.threads) return;
  g.vote = {g.in_favour, g.in_block};
  g.in_block = 0;
  g.in_favour = 0;
  for (const int t : g.start_order) {
    if (g.state[static_cast<std::size_t>(t)] == State::kInBlock) make_ready(g, t);
  }
}

void release_warp_if_complete(Grid& g, int warp, unsigned mask) {
  WarpCount& count = g.warp[static_cast<std::size_t>(warp)];
  if (count.waiting + count.absent < __builtin_popcount(mask)) return;
  void* payloads[kWarp] = {};
  const Thread* first = nullptr;
  for (int lane = 0; lane < kWarp; ++lane) {
    const int t = warp * kWarp + lane;
    if (((mask >> lane) & 1u) == 0 || t >= g.threads) continue;
    const State state = g.state[static_cast<std::size_t>(t)];
    if (state == State::kDone) continue;
    const Thread& thread = g.thread[static_cast<std::size_t>(t)];
    if (state != State::kInWarp || thread.mask != mask) return;
    if (first == nullptr) first = &thread;
    if (std::string_view(thread.what) != first->what) {
      fail_with(g, "lanes of one warp meet at " + site_text(first->what, first->site) + " and at " +
                       site_text(thread.what, thread.site));
    }
    payloads[lane] = thread.payload != nullptr ? thread.payload : &payloads[lane];
  }
  if (first == nullptr) return;
  first->combine(payloads);
  for (int i = 0; i < kWarp; ++i) {
    const int lane = g.order == Order::kReverse ? kWarp - 1 - i : i;
    if (payloads[lane] == nullptr) continue;
    --count.waiting;
    make_ready(g, warp * kWarp + lane);
  }
}

void set_current(Grid& g, int t) {
  g.current = t;
  threadIdx = g.index[static_cast<std::size_t>(t)];
}

void finish_current(Grid& g) {
  const int warp = g.current / kWarp;
  g.state[static_cast<std::size_t>(g.current)] = State::kDone;
  ++g.done;
  WarpCount& count = g.warp[static_cast<std::size_t>(warp)];
  ++count.absent;
  release_block_if_complete(g);
  for (int lane = 0; lane < kWarp && count.waiting > 0; ++lane) {
    const int t = warp * kWarp + lane;
    if (t < g.threads && g.state[static_cast<std::size_t>(t)] == State::kInWarp) {
      release_warp_if_complete(g, warp, g.thread[static_cast<std::size_t>(t)].mask);
    }
  }
}

bool anyone_ready(const Grid& g) { return g.ready_head < g.ready.size(); }

// Makes the next ready thread the running one; returns the fiber it stopped on.
Fiber* take_ready(Grid& g) {
  if (g.order == Order::kRandom) {
    const std::size_t pick = g.ready_head + g.random() % (g.ready.size() - g.ready_head);
    std::swap(g.ready[g.ready_head], g.ready[pick]);
  }
  const int t = g.ready[g.ready_head++];
  if (g.ready_head == g.ready.size()) {
    g.ready.clear();
    g.ready_head = 0;
  }
  set_current(g, t);
  g.fiber = g.thread[static_cast<std::size_t>(t)].fiber;
  return g.fiber;
}

// Stops the running fiber: on to the next thread that is ready, else to the scheduler in run_block.
void leave_fiber(Grid& g) {
  Fiber* const own = g.fiber;
  Fiber* next = fiber_main();
  if (g.order != Order::kRandom && anyone_ready(g)) next = take_ready(g);
  if (next != own) fiber_switch(own, next);
}

// A fiber runs threads to their end one after the other, for as long as none waits.
void fiber_loop() {
  Grid& g = grid();
  for (;;) {
    const int t = g.start_order[static_cast<std::size_t>(g.started++)];
    g.thread[static_cast<std::size_t>(t)].fiber = g.fiber;
    set_current(g, t);
    g.body(g.closure);
    finish_current(g);
    if (g.started < g.threads && !anyone_ready(g)) continue;
    g.free_fibers.push_back(g.fiber);
    leave_fiber(g);
  }
}

[[noreturn]] void fail_deadlock(Grid& g) {
  g.current = -1;
  std::map<std::string, std::pair<int, int>> groups;  // what they wait for -> (how many, the first)
  for (int t = 0; t < g.threads; ++t) {
    const Thread& thread = g.thread[static_cast<std::size_t>(t)];
    const State state = g.state[static_cast<std::size_t>(t)];
    if (state == State::kDone) continue;
    std::string key = site_text(thread.what, thread.site);
    if (state == State::kInWarp) {
      char mask[32];
      std::snprintf(mask, sizeof mask, " with mask 0x%08x", thread.mask);
      key += mask;
    }
    auto [entry, is_new] = groups.try_emplace(key, 0, t);
    ++entry->second.first;
  }
  std::string text = "deadlock: ";
  for (const auto& [key, group] : groups) {
    text += std::to_string(group.first) + " thread(s), the first " +
            index_text(g.index[static_cast<std::size_t>(group.second)]) + ", wait in " + key + "; ";
  }
  fail_with(g, text + std::to_string(g.done) + " thread(s) have exited");
}

void run_block(Grid& g) {
  const std::size_t threads = static_cast<std::size_t>(g.threads);
  ++block_epoch;
  g.state.assign(threads, State::kFresh);
  g.warp.assign((threads + kWarp - 1) / kWarp, WarpCount{0, 0});
  if (threads % kWarp != 0) g.warp.back().absent = kWarp - static_cast<int>(threads % kWarp);
  g.ready.clear();
  g.ready_head = 0;
  g.started = g.done = g.in_block = g.in_favour = 0;
  std::memset(dynamic_shared(), 0xff, g.shared_bytes);
  std::memset(dynamic_shared() + g.shared_bytes, kCanary, kCanaryBytes);
  if (g.order == Order::kRandom) {
    for (std::size_t i = threads - 1; i > 0; --i) std::swap(g.start_order[i], g.start_order[g.random() % (i + 1)]);
  }
  while (g.done < g.threads) {
    const bool fresh = g.started < g.threads;
    const bool prefer_fresh = g.order == Order::kRandom && fresh && g.random() % 2 == 0;
    if (anyone_ready(g) && !prefer_fresh) {
      take_ready(g);
    } else if (fresh) {
      if (g.free_fibers.empty()) {
        g.fibers.push_back(fiber_create(fiber_loop));
        g.free_fibers.push_back(g.fibers.back());
      }
      g.fiber = g.free_fibers.back();
      g.free_fibers.pop_back();
    } else {
      fail_deadlock(g);
    }
    fiber_switch(fiber_main(), g.fiber);
    if (!g.error.empty()) throw std::runtime_error(g.error);
    g.current = -1;
  }
  for (std::size_t i = 0; i < kCanaryBytes; ++i) {
    if (dynamic_shared()[g.shared_bytes + i] != kCanary) {
      fail_with(g, "wrote past the end of its " + std::to_string(g.shared_bytes) + " bytes of dynamic shared memory");
    }
  }
}

Order order_from_environment() {
  const char* value = std::getenv("GENFAST_SIMT_ORDER");
  const std::string_view text = value == nullptr ? "forward" : value;
  if (text == "forward") return Order::kForward;
  if (text == "reverse") return Order::kReverse;
  if (text == "random") return Order::kRandom;
  throw std::runtime_error("GENFAST_SIMT_ORDER is \"" + std::string(text) +
                           "\"; it must be \"forward\", \"reverse\" or \"random\"");
}

unsigned seed_from_environment() {
  const char* value = std::getenv("GENFAST_SIMT_SEED");
  return value == nullptr ? 1u : static_cast<unsigned>(std::strtoul(value, nullptr, 10));
}

void check_shape(const char* kernel, dim3 grid_dim, dim3 block, std::size_t shared_bytes) {
  const std::uint64_t threads = std::uint64_t{block.x} * block.y * block.z;
  const bool block_fits = threads >= 1 && threads <= 1024 && block.x <= 1024 && block.y <= 1024 && block.z <= 64;
  const bool grid_fits = grid_dim.x <= 0x7fffffffu && grid_dim.y <= 65535 && grid_dim.z <= 65535;
  constexpr std::size_t kMaxShared = std::size_t{227} * 1024;
  if (block_fits && grid_fits && shared_bytes <= kMaxShared) return;
  throw std::runtime_error(std::string("simt kernel ") + kernel + ": launch shape beyond sm_90: grid " +
                           index_text(grid_dim) + ", block " + index_text(block) + ", " + std::to_string(shared_bytes) +
                           " bytes of dynamic shared memory");
}

void start_grid(Grid& g, dim3 grid_dim, dim3 block, std::size_t shared_bytes) {
  g.threads = static_cast<int>(block.x * block.y * block.z);
  g.shared_bytes = shared_bytes;
  g.current = -1;
  g.error.clear();
  const std::size_t threads = static_cast<std::size_t>(g.threads);
  g.thread.resize(threads);
  g.index.clear();
  g.start_order.clear();
  for (unsigned z = 0; z < block.z; ++z) {
    for (unsigned y = 0; y < block.y; ++y) {
      for (unsigned x = 0; x < block.x; ++x) g.index.push_back({x, y, z});
    }
  }
  for (int t = 0; t < g.threads; ++t) g.start_order.push_back(g.order == Order::kReverse ? g.threads - 1 - t : t);
  const std::size_t needed = shared_bytes + kCanaryBytes + 128;
  if (g.shared.size() < needed) g.shared.resize(needed);
  blockDim = block;
  gridDim = grid_dim;
}

void abandon_fibers(Grid& g) {
  g.current = -1;
  g.free_fibers = g.fibers;
  for (Fiber* fiber : g.fibers) fiber_reset(fiber, fiber_loop);
}

}  // namespace

int lane() { return grid().current % kWarp; }

int block_thread() { return grid().current; }

unsigned char* dynamic_shared() {
  const auto address = reinterpret_cast<std::uintptr_t>(grid().shared.data());
  return grid().shared.data() + (128 - address % 128) % 128;
}

void fail(const char* format, ...) {
  std::va_list arguments;
  va_start(arguments, format);
  const std::string message = format_text(format, arguments);
  va_end(arguments);
  fail_with(grid(), message);
}

BarrierVote block_barrier(const char* what, bool predicate, Site site) {
  Grid& g = grid();
  Thread& own = g.thread[static_cast<std::size_t>(g.current)];
  own.what = what;
  own.site = site;
  if (g.in_block == 0) {
    g.first_in_block = g.current;
  } else {
    const Thread& first = g.thread[static_cast<std::size_t>(g.first_in_block)];
    if (first.site.line != site.line || std::string_view(first.site.file) != site.file) {
      fail_with(g, "reached " + site_text(what, site) + " while thread " +
                       index_text(g.index[static_cast<std::size_t>(g.first_in_block)]) + " waits in " +
                       site_text(first.what, first.site));
    }
  }
  ++g.in_block;
  g.in_favour += predicate;
  g.state[static_cast<std::size_t>(g.current)] = State::kInBlock;
  release_block_if_complete(g);
  leave_fiber(g);
  return g.vote;
}

void warp_collective(const char* what, unsigned mask, void* payload, Combine combine, Site site) {
  Grid& g = grid();
  const int warp = g.current / kWarp;
  if (((mask >> (g.current % kWarp)) & 1u) == 0) {
    fail_with(g, site_text(what, site) + ": the calling lane is not in the mask");
  }
  Thread& own = g.thread[static_cast<std::size_t>(g.current)];
  own.what = what;
  own.site = site;
  own.mask = mask;
  own.payload = payload;
  own.combine = combine;
  g.state[static_cast<std::size_t>(g.current)] = State::kInWarp;
  ++g.warp[static_cast<std::size_t>(warp)].waiting;
  release_warp_if_complete(g, warp, mask);
  leave_fiber(g);
}

void run_grid(const char* kernel, dim3 grid_dim, dim3 block, std::size_t shared_bytes, void (*body)(void*),
              void* closure) {
  check_shape(kernel, grid_dim, block, shared_bytes);
  if (grid_dim.x == 0 || grid_dim.y == 0 || grid_dim.z == 0) return;
  Grid& g = grid();
  const std::lock_guard<std::mutex> lock(g.mutex);
  g.order = order_from_environment();
  g.random.seed(seed_from_environment());
  g.kernel = kernel;
  g.body = body;
  g.closure = closure;
  start_grid(g, grid_dim, block, shared_bytes);
  const std::uint64_t blocks = std::uint64_t{grid_dim.x} * grid_dim.y * grid_dim.z;
  const std::uint64_t first = g.order == Order::kRandom ? g.random() % blocks : 0;
  try {
    for (std::uint64_t i = 0; i < blocks; ++i) {
      const std::uint64_t b = g.order == Order::kReverse ? blocks - 1 - i : (first + i) % blocks;
      blockIdx.x = static_cast<unsigned>(b % grid_dim.x);
      blockIdx.y = static_cast<unsigned>(b / grid_dim.x % grid_dim.y);
      blockIdx.z = static_cast<unsigned>(b / grid_dim.x / grid_dim.y);
      run_block(g);
    }
  } catch (...) {
    abandon_fibers(g);
    throw;
  }
}

}  // namespace gf::emu
