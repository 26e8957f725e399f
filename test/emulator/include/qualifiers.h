#pragma once

// The standard library uses __noinline__ as the name of an attribute, so it becomes nothing rather than an attribute.
#define __noinline__
#define __global__
#define __device__
#define __host__
#define __constant__
#define __managed__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define __cluster_dims__(...)
/// The blocks that one host thread runs follow each other, so they can share one copy.
#define __shared__ static thread_local
