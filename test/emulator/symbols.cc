#include "test/emulator/symbols.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <link.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <vector>

namespace nibblet::emulated {

static std::string demangled(const char* name) {
  int status = 0;
  char* text = abi::__cxa_demangle(name, nullptr, nullptr, &status);
  std::string result = status == 0 ? text : name;
  std::free(text);
  return result;
}

/// Kernels have internal linkage or hidden visibility: dladdr knows neither, the table for debuggers knows both.
static std::string local_symbol(const char* path, uintptr_t offset) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (bytes.size() < sizeof(ElfW(Ehdr)) || std::memcmp(bytes.data(), ELFMAG, SELFMAG) != 0) return "";
  auto header = reinterpret_cast<const ElfW(Ehdr)*>(bytes.data());
  auto sections = reinterpret_cast<const ElfW(Shdr)*>(bytes.data() + header->e_shoff);
  for (int i = 0; i < header->e_shnum; ++i) {
    if (sections[i].sh_type != SHT_SYMTAB) continue;
    auto symbols = reinterpret_cast<const ElfW(Sym)*>(bytes.data() + sections[i].sh_offset);
    const char* names = bytes.data() + sections[sections[i].sh_link].sh_offset;
    for (size_t n = 0; n < sections[i].sh_size / sizeof(*symbols); ++n)
      if (ELF64_ST_TYPE(symbols[n].st_info) == STT_FUNC && symbols[n].st_value == offset)
        return demangled(names + symbols[n].st_name);
  }
  return "";
}

std::string symbol_name(const void* function) {
  Dl_info info;
  if (dladdr(function, &info) == 0) return "at an unknown address";
  if (info.dli_sname != nullptr && info.dli_saddr == function) return demangled(info.dli_sname);
  const uintptr_t offset =
      reinterpret_cast<uintptr_t>(function) - reinterpret_cast<uintptr_t>(info.dli_fbase);
  const std::string name = local_symbol(info.dli_fname, offset);
  if (!name.empty()) return name;
  char text[64];
  std::snprintf(text, sizeof text, "at +0x%zx of ", size_t(offset));
  return text + std::string(info.dli_fname);
}

}  // namespace nibblet::emulated
