#pragma once

#include <cstdint>
#include <source_location>
#include <string>

#include "test/emulator/include/types.h"

// Unlike thread_local, never initialised at run time: read without a call where the linker sees the whole program.
#define NIBBLET_EMULATED_LOCAL __thread
extern NIBBLET_EMULATED_LOCAL uint3 threadIdx;
extern NIBBLET_EMULATED_LOCAL uint3 blockIdx;
extern NIBBLET_EMULATED_LOCAL dim3 blockDim;
extern NIBBLET_EMULATED_LOCAL dim3 gridDim;

namespace nibblet::emulated {

using Place = std::source_location;

/// Ends the launch: prints the kernel, block and thread with the text, then aborts. Where a FaultRecorder lives, the
/// launch fails instead, and with it all that follows on the device until cudaDeviceReset.
[[noreturn]] void fault(const std::string& text, Place where = Place::current());

/// Lets another thread of the block run, in loops that wait for what another thread does.
void yield(Place where = Place::current());

enum class BarrierVote { none, all, any, count };

/// Waits for `threads` threads of the block at barrier `id` of 16, 0 meaning all that have not ended. The same `vote`
/// for all: what they return is that of the predicates.
int barrier(int id, int threads, BarrierVote vote, bool predicate, Place where);

}  // namespace nibblet::emulated

inline void __syncthreads(nibblet::emulated::Place where = nibblet::emulated::Place::current()) {
  nibblet::emulated::barrier(0, 0, nibblet::emulated::BarrierVote::none, false, where);
}
inline int __syncthreads_and(int predicate,
                             nibblet::emulated::Place where = nibblet::emulated::Place::current()) {
  return nibblet::emulated::barrier(0, 0, nibblet::emulated::BarrierVote::all, predicate != 0, where);
}
inline int __syncthreads_or(int predicate,
                            nibblet::emulated::Place where = nibblet::emulated::Place::current()) {
  return nibblet::emulated::barrier(0, 0, nibblet::emulated::BarrierVote::any, predicate != 0, where);
}
inline int __syncthreads_count(int predicate,
                               nibblet::emulated::Place where = nibblet::emulated::Place::current()) {
  return nibblet::emulated::barrier(0, 0, nibblet::emulated::BarrierVote::count, predicate != 0, where);
}
/// @param nanoseconds not slept: another thread of the block runs
inline void __nanosleep(unsigned nanoseconds,
                        nibblet::emulated::Place where = nibblet::emulated::Place::current()) {
  (void)nanoseconds;
  nibblet::emulated::yield(where);
}
[[noreturn]] inline void __trap(nibblet::emulated::Place where = nibblet::emulated::Place::current()) {
  nibblet::emulated::fault("__trap()", where);
}
