// The limit of dynamic shared memory under launches from several threads, with a runtime that writes down what is
// asked.
#include <cstdio>
#include <stdexcept>
#include <thread>
#include <vector>

#include "common/launch.cuh"

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace {

void first_kernel(int) {}
void second_kernel(int) {}

int failures = 0;
void expect(bool ok, const char* what) {
  if (ok) return;
  std::printf("%s\n", what);
  ++failures;
}

void launch_with(void (*kernel)(int), std::size_t bytes) {
  gf::launch("test", kernel, dim3(1), dim3(32), bytes, gf::Stream{nullptr, 0}, 1);
}

}  // namespace

int main() {
  constexpr std::size_t kKiB = 1024;
  launch_with(first_kernel, 16 * kKiB);
  expect(fake::times_set == 0, "a small launch asks for nothing");

  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([t] {
      for (std::size_t i = 0; i < 200; ++i)
        launch_with(t % 2 ? first_kernel : second_kernel, (49 + (t + i) % 150) * kKiB);
    });
  }
  for (std::thread& t : threads) t.join();
  expect(fake::launches == 1 + 8 * 200, "no launch fails because of another's limit");
  expect(fake::times_set == 2, "the limit is raised once a kernel");
  expect(!fake::lowered, "and never lowered");

  bool refused = false;
  try {
    launch_with(first_kernel, 227 * kKiB);
  } catch (const std::runtime_error&) {
    refused = true;
  }
  expect(refused, "more than the device has is an error");
  if (failures == 0) std::printf("ok\n");
  return failures;
}
