// Blocks of a GPU's threads without a GPU: every thread is a fiber, and runs until it waits for the others.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

namespace emulated {

// Runs body(thread, block) in `blocks` x `threads` fibers, in turns that change from round to round.
class Fibers {
 public:
  struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    int thread, block;
    int64_t meetings = 0;  // of its block that it has come to
    bool done = false;
  };

  Fibers(int blocks, int threads, std::function<void(int, int)> body) : threads_(threads), body_(std::move(body)) {
    arrived_.resize(blocks);
    for (int i = 0; i < blocks * threads; ++i) add(i % threads, i / threads);
  }

  void run() {
    for (int64_t round = 0, left = 1; left > 0; ++round) {
      left = 0;
      const int64_t count = static_cast<int64_t>(fibers_.size());
      for (int64_t i = 0; i < count; ++i) {
        Fiber& fiber = *fibers_[(i * (round % 2 == 0 ? 1 : count - 1) + round * 7) % count];  // forwards, backwards
        if (fiber.done) continue;
        ++left;
        if (arrived_[fiber.block] < fiber.meetings * threads_) continue;  // waits for its block
        now() = this;
        fiber_ = &fiber;
        swapcontext(&main_, &fiber.context);
      }
    }
  }

  // Comes back when every thread of the block has come here as often.
  void sync() {
    Fiber& fiber = *fiber_;
    ++arrived_[fiber.block];
    ++fiber.meetings;
    pause();
  }

  void pause() {
    Fiber& fiber = *fiber_;
    swapcontext(&fiber.context, &main_);
  }

 private:
  static constexpr size_t kStack = 131072;  // sanitizers take much of it

  void add(int thread, int block) {
    fibers_.emplace_back(new Fiber);
    Fiber& fiber = *fibers_.back();
    fiber.stack.reset(new char[kStack]);
    fiber.thread = thread;
    fiber.block = block;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = &main_;
    makecontext(&fiber.context, reinterpret_cast<void (*)()>(&Fibers::enter), 0);
  }

  static Fibers*& now() {
    static Fibers* current = nullptr;
    return current;
  }

  static void enter() {
    Fibers* fibers = now();
    Fiber* fiber = fibers->fiber_;
    fibers->body_(fiber->thread, fiber->block);
    fiber->done = true;
  }

  int threads_;
  std::function<void(int, int)> body_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<int64_t> arrived_;  // at meetings, of each block
  ucontext_t main_;
  Fiber* fiber_ = nullptr;
};

}  // namespace emulated
