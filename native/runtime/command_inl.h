#pragma once

#include <algorithm>
#include <climits>

#include "native/runtime/command.h"
#include "native/runtime/pool.h"

namespace nibblet {

template <class Args, class Most>
void run_phases_up_to(int affordable, const Execution& execution, void (*kernel)(const Args&, int, int, int),
                      int phases, const Args& args, const Most& most) {
  for (int phase = 0; phase < phases; ++phase) {
    if (execution.cancelled && execution.cancelled->load(std::memory_order_relaxed)) return;
    const int slices = std::min<int>(affordable, most(phase));
    if (slices == 1) {
      kernel(args, phase, 0, 1);
      continue;
    }
    Pool::instance().run(
        execution.threads, slices, [&](int slice) { kernel(args, phase, slice, slices); },
        execution.cancelled);
  }
}

template <class Args, class Most>
void run_phases(const Execution& execution, void (*kernel)(const Args&, int, int, int), int phases,
                const Args& args, double work, const Most& most) {
  int affordable =
      execution.threads * static_cast<int>(std::clamp(work / (kSliceWork * execution.threads), 1.0, 1024.0));
  if (work < kWakeWork) affordable = 1;
  run_phases_up_to(affordable, execution, kernel, phases, args, most);
}

template <class Args>
void run_phases(const Execution& execution, void (*kernel)(const Args&, int, int, int), int phases,
                const Args& args, double work) {
  run_phases(execution, kernel, phases, args, work, [](int) { return INT_MAX; });
}

template <class Args, class Most>
void run_phases_unsliced(const Execution& execution, void (*kernel)(const Args&, int, int, int), int phases,
                         const Args& args, const Most& most) {
  run_phases_up_to(execution.threads, execution, kernel, phases, args, most);
}

template <class Args>
void run_phases_unsliced(const Execution& execution, void (*kernel)(const Args&, int, int, int), int phases,
                         const Args& args) {
  run_phases_unsliced(execution, kernel, phases, args, [](int) { return INT_MAX; });
}

}  // namespace nibblet
