#pragma once

#include <string>

namespace nibblet::emulated {

/// The name of a function from the symbol table of its module, or its address there.
std::string symbol_name(const void* function);

}  // namespace nibblet::emulated
