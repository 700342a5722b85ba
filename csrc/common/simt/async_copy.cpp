#include <cstdint>
#include <cstring>
#include <deque>
#include <unordered_map>

#include "common/simt/runtime.h"

namespace gf::emu {
namespace {

struct Copy {
  void* shared;
  const void* global;  // null: zeros
  int bytes;
  std::int64_t group;
};

// One thread's copies that have not landed.
struct Pipeline {
  std::deque<Copy> copies;
  std::int64_t group = 0;  // the one that the next copy joins
};

// Of the running block, by thread. One grid runs at a time (runtime.h).
std::unordered_map<int, Pipeline>& pipelines() {
  static std::uint64_t epoch = 0;
  static auto* instance = new std::unordered_map<int, Pipeline>;
  if (epoch != block_epoch) {
    instance->clear();
    epoch = block_epoch;
  }
  return *instance;
}

}  // namespace

void async_copy(void* shared, const void* global, int bytes) {
  const auto aligned = [bytes](const void* p) {
    return reinterpret_cast<std::uintptr_t>(p) % static_cast<unsigned>(bytes) == 0;
  };
  if (!aligned(shared) || !aligned(global)) fail("async_copy: an address is not aligned to %d bytes", bytes);
  Pipeline& pipeline = pipelines()[block_thread()];
  std::memset(shared, 0xff, static_cast<std::size_t>(bytes));
  pipeline.copies.push_back({shared, global, bytes, pipeline.group});
}

void async_copy_commit() { ++pipelines()[block_thread()].group; }

void async_copy_wait(int pending) {
  Pipeline& pipeline = pipelines()[block_thread()];
  while (!pipeline.copies.empty() && pipeline.copies.front().group < pipeline.group - pending) {
    const Copy& copy = pipeline.copies.front();
    if (copy.global != nullptr) {
      std::memcpy(copy.shared, copy.global, static_cast<std::size_t>(copy.bytes));
    } else {
      std::memset(copy.shared, 0, static_cast<std::size_t>(copy.bytes));
    }
    pipeline.copies.pop_front();
  }
}

}  // namespace gf::emu
