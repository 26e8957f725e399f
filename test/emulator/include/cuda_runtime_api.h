#pragma once

#include "test/emulator/include/runtime_api.h"
