#pragma once

/// Marks functions that host and CUDA device code share.
#ifdef __CUDACC__
#define NIBBLET_HD __host__ __device__
#else
#define NIBBLET_HD
#endif
