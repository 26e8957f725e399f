# The CUDA compiler, its targets and its flags, for CMakeLists.txt with NIBBLET_CUDA=ON.
if(CMAKE_VERSION VERSION_LESS 4.1)
  message(FATAL_ERROR "GPU code needs CMake 4.1 or newer, found ${CMAKE_VERSION}: `npm run setup:cuda` installs one as .cuda/bin/cmake")
endif()

set(NIBBLET_CUDA_ARCHS "80,89,90a,100f,120f" CACHE STRING "GPU targets, the newest last")
string(REPLACE "," ";" architectures "${NIBBLET_CUDA_ARCHS}")
# A driver compiles the last one's PTX for what is newer; more of it would only be weight.
list(POP_BACK architectures newest)
list(TRANSFORM architectures APPEND "-real")
set(CMAKE_CUDA_ARCHITECTURES ${architectures} ${newest})

set(toolkit_nvcc "${CMAKE_SOURCE_DIR}/.cuda/toolkit/bin/nvcc")
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX} AND EXISTS "${toolkit_nvcc}")
  set(CMAKE_CUDA_COMPILER "${toolkit_nvcc}")
endif()
if(NOT CMAKE_CUDA_HOST_COMPILER AND NOT DEFINED ENV{CUDAHOSTCXX})
  set(CMAKE_CUDA_HOST_COMPILER "${CMAKE_CXX_COMPILER}")
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
# So that the addon loads where there is no CUDA at all.
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 13.0 OR NOT CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 13.1)
  message(FATAL_ERROR "GPU code is built with CUDA 13.0, found ${CMAKE_CUDA_COMPILER_VERSION}: `npm run setup:cuda` installs it")
endif()

# Host code in .cu files keeps the rule of CMakeLists.txt about fused multiply-adds; device code may fuse.
add_library(nibblet-cuda INTERFACE)
target_compile_definitions(nibblet-cuda INTERFACE NIBBLET_CUDA=1 NIBBLET_CUDA_ARCHS="${NIBBLET_CUDA_ARCHS}")
target_include_directories(nibblet-cuda SYSTEM INTERFACE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
target_compile_options(nibblet-cuda INTERFACE
  "$<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr;-lineinfo;--threads=1;-Xcompiler=-Wall,-Wextra,-ffp-contract=off,-fno-math-errno>"
  "$<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<BOOL:${NIBBLET_WERROR}>>:-Werror=all-warnings;-Xcompiler=-Werror>")
