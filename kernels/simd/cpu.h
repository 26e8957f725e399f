#pragma once

namespace nibblet {

/// Instruction sets that ops have variants for, each containing the ones before it.
///   portable    what the compiler targets by default
///   avx2        AVX2, FMA
///   avx512      AVX-512 F, BW, DQ, VL (and what avx2 needs)
///   avx512vnni  AVX-512 VNNI: integer dot products of nvfp4 weights
/// Compare with >=: an op without a variant of its own takes the one before.
enum class CpuVariant : int { portable, avx2, avx512, avx512vnni };

/// Chooses the variant of every op of this process by name; without a call it is the best this machine has. This
/// selection is the only state that kernels have: set it before the first op, since results differ between variants
/// within their error bound. Returns false, and changes nothing, when the name is unknown or the machine cannot run it.
bool select_cpu_variant(const char* name);

/// Name of the variant in use.
const char* cpu_variant();

/// The variant in use, for plan.cc files.
CpuVariant selected_cpu_variant();

}  // namespace nibblet
