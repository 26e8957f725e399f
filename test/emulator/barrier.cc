#include <utility>

#include "test/emulator/block.h"

namespace nibblet::emulated {

int Processor::barrier(int id, int threads, BarrierVote vote, bool predicate, Place where) {
  if (id < 0 || id > 15) fault("there is no barrier " + std::to_string(id), where);
  if (threads % 32 != 0)
    fault("a barrier of " + std::to_string(threads) + " threads: not whole warps", where);
  Barrier& barrier = barriers_[size_t(id)];
  if (barrier.arrived == 0) {
    barrier.expected = threads;
    barrier.vote = vote;
    barrier.where = where;
    barrier.votes = 0;
  } else if (barrier.vote != vote || barrier.expected != threads ||
             (id == 0 && !same(barrier.where, where))) {
    fault("threads of the block wait at different barriers: at " + text_of(barrier.where) + " and at " +
              text_of(where),
          where);
  }
  const uint32_t round = barrier.round;
  barrier.votes += predicate;
  ++barrier.arrived;
  if (barrier.arrived == (barrier.expected == 0 ? live_ : barrier.expected)) {
    finish_round(barrier);
  } else {
    barrier.waiting[size_t(running_->number / 32)] |= 1u << (running_->number % 32);
    wait("a barrier", where);
  }
  return barrier.results[round % 2];
}

void Processor::finish_round(Barrier& barrier) {
  int& result = barrier.results[barrier.round % 2];
  switch (barrier.vote) {
    case BarrierVote::none:
      result = 0;
      break;
    case BarrierVote::all:
      result = barrier.votes == barrier.arrived;
      break;
    case BarrierVote::any:
      result = barrier.votes > 0;
      break;
    case BarrierVote::count:
      result = barrier.votes;
      break;
  }
  ++barrier.round;
  barrier.arrived = 0;
  for (int w = 0; w * 32 < threads_; ++w) release(w, std::exchange(barrier.waiting[size_t(w)], 0));
}

int barrier(int id, int threads, BarrierVote vote, bool predicate, Place where) {
  return Processor::current().barrier(id, threads, vote, predicate, where);
}

}  // namespace nibblet::emulated
