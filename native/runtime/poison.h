#pragma once

#include <cstddef>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define NIBBLET_ADDRESS_SANITIZER
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define NIBBLET_ADDRESS_SANITIZER
#endif
#ifdef NIBBLET_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#endif

namespace nibblet {

/// The address sanitizer watches what malloc gives, and no mapping. These tell it what of a mapping nobody may touch: what
/// its last page has too much. They do nothing in other builds.
inline void poison([[maybe_unused]] const void* begin, [[maybe_unused]] size_t bytes) {
#ifdef NIBBLET_ADDRESS_SANITIZER
  __asan_poison_memory_region(begin, bytes);
#endif
}

/// To be called before the memory is unmapped: the address will be used again.
inline void unpoison([[maybe_unused]] const void* begin, [[maybe_unused]] size_t bytes) {
#ifdef NIBBLET_ADDRESS_SANITIZER
  __asan_unpoison_memory_region(begin, bytes);
#endif
}

}  // namespace nibblet
