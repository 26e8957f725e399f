#pragma once

#include "test/cuda/compact.h"
#include "test/runtime/loaded_weight.h"

namespace nibblet::test {

struct Loaded : LoadedOn {
  explicit Loaded(RandomWeight source)
      : LoadedOn(Device::open("cuda:0"), Layout::fragments, std::move(source)) {}
};

}  // namespace nibblet::test
