#pragma once

/// Stands in for the header of the CUDA toolkit: kernels and the code that launches them compile with a C++ compiler and
/// run on the CPU. What is modelled and what is not: test/emulator/README.md.
#include "test/emulator/include/atomics.h"
#include "test/emulator/include/launch.h"
#include "test/emulator/include/maths.h"
#include "test/emulator/include/qualifiers.h"
#include "test/emulator/include/runtime_api.h"
#include "test/emulator/include/thread.h"
#include "test/emulator/include/types.h"
#include "test/emulator/include/warp.h"
