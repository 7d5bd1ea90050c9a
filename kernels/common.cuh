// What all kernels share: half precision, asynchronous copies, and what a host build puts in their place.
//
// Everything is compiled without contraction of a·b + c (`--fmad=false`, `-ffp-contract=off`): where a fused
// multiply-add is meant it is written, so that the same source gives the same numbers on a host and on a device.
#pragma once

#ifdef CELLGATE_HOST
#include "host/cuda_host.hpp"
#else
#include <cuda_fp16.h>

typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
typedef long long int64_t;

// The block's dynamic shared memory, as bytes.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

// Starts to copy 16 bytes; both addresses are multiples of 16. They are there after `copies_arrived`, for this thread, and
// for its warp after a `__syncwarp` behind that.
__device__ __forceinline__ void copy_async16(void* shared, const void* global) {
    const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}

__device__ __forceinline__ void copies_arrived() {
    asm volatile("cp.async.wait_all;" ::: "memory");
}
#endif

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

// Floats as numbers that are ordered as they are, −∞ to +∞.
__device__ __forceinline__ uint32_t ordered(float x) {
    const uint32_t bits = __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float from_ordered(uint32_t key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// What one block reduces, it reduces with all its threads.
constexpr int THREADS = 1024;
constexpr int WARPS = THREADS / WARP;

// Sums over a block of 1024, the result in every thread. `parts` holds 32 numbers; it is free again after the next barrier.
__device__ __forceinline__ float block_sum(float x, float* parts) {
    x = warp_sum(x);
    __syncthreads(); // the last reader of `parts` is done
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = x;
    __syncthreads();
    return warp_sum(parts[threadIdx.x % WARP]);
}
