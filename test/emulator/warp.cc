#include <bit>
#include <cstdio>

#include "test/emulator/block.h"

namespace nibblet::emulated {

static const char* name_of(Collective kind) {
  switch (kind) {
    case Collective::sync:
      return "__syncwarp";
    case Collective::shuffle:
      return "a shuffle";
    case Collective::vote:
      return "a vote";
    case Collective::match:
      return "a match";
    case Collective::reduce:
      return "a reduction";
    case Collective::mma:
      return "mma";
    case Collective::ldmatrix:
      return "ldmatrix";
  }
  return "";
}

static std::string text_of(uint32_t mask) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%08x", mask);
  return text;
}

static std::string text_of(Collective kind, uint32_t mask, Place where) {
  return std::string(name_of(kind)) + " of the lanes " + text_of(mask) + " (" + text_of(where) + ")";
}

void Processor::complete(Warp& warp, Gathering& gathering) {
  const uint32_t arrived = std::exchange(gathering.arrived, 0);
  warp.gathering &= ~(1u << std::countr_zero(gathering.mask));
  if (gathering.combine != nullptr) gathering.combine(warp.lanes.data(), arrived);
  // The lane that completes it, the last to come or one that ends, runs already.
  release(running_->number / 32, arrived & ~(1u << (running_->number % 32)));
}

void collective(Collective kind, uint32_t mask, const void* in, void* out, Combine combine, Place where) {
  Processor& processor = Processor::current();
  Warp& warp = processor.warp();
  const int lane = processor.thread().number % 32;
  if ((mask >> lane & 1) == 0)
    fault(text_of(kind, mask, where) + " leaves out the lane that calls it, " + std::to_string(lane), where);
  const int slot = std::countr_zero(mask);
  Gathering& gathering = warp.gatherings[size_t(slot)];
  warp.lanes[size_t(lane)] = {in, out};
  if (gathering.arrived == 0) {
    gathering.mask = mask;
    gathering.kind = kind;
    gathering.where = where;
    gathering.combine = combine;
    warp.gathering |= 1u << slot;
  } else if (gathering.mask != mask || gathering.kind != kind || !same(gathering.where, where)) {
    fault("the warp diverged: lanes " + text_of(gathering.arrived) + " wait in " +
              text_of(gathering.kind, gathering.mask, gathering.where) + ", lane " + std::to_string(lane) +
              " came to " + text_of(kind, mask, where),
          where);
  }
  gathering.arrived |= 1u << lane;
  if (gathering.arrived == (mask & warp.live))
    processor.complete(warp, gathering);
  else
    processor.wait(name_of(kind), where);
}

uint32_t live_lanes() { return Processor::current().warp().live; }

int lane_index() { return Processor::current().thread().number % 32; }

void fault_of_lane(int lane, const std::string& text) { fault("lane " + std::to_string(lane) + " " + text); }

void check_width(int width, Place where) {
  if (width < 1 || width > 32 || !std::has_single_bit(unsigned(width)))
    fault("the width of a shuffle is a power of two up to 32, not " + std::to_string(width), where);
}

uint32_t ballot(uint32_t mask, bool predicate, Place where) {
  uint32_t out;
  auto combine = [](const Lane* lanes, uint32_t arrived) {
    uint32_t result = 0;
    for (uint32_t left = arrived; left != 0; left &= left - 1) {
      const int lane = std::countr_zero(left);
      if (*static_cast<const bool*>(lanes[lane].in)) result |= 1u << lane;
    }
    for (uint32_t left = arrived; left != 0; left &= left - 1)
      *static_cast<uint32_t*>(lanes[std::countr_zero(left)].out) = result;
  };
  collective(Collective::vote, mask, &predicate, &out, combine, where);
  return out;
}

}  // namespace nibblet::emulated
