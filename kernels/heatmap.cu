// The heatmap of a cell: distances smoothed, scored and cut into regions, as src/heatmap does it.
//
// Maps are side × side floats, row by row, side ≤ 256 (64 by default: 16 KB, which stays in the second cache level, so that
// none of these moves anything that counts; their floor is the launch, about 2 µs each inside a graph).
//
//   smooth_rows, smooth_columns   kernel[0..=radius], one half of a symmetric window; past the border the map continues with
//                                 its border values. One thread a value: block any, grid ⌈side² / block⌉. In the order of
//                                 the CPU's sums and without fused multiply-adds: equal to the last bit.
//   heatmap_scores                mean of the largest 1 %, maximum, mean, and whether all are finite. One block of 1024.
//                                 The 1 % by four rounds of a radix select on ordered bits; sums by fixed trees, so that
//                                 each run gives the same.
//   heatmap_regions               the parts (8 neighbours) above a level: up to 8 by peak, each with the box and the area of
//                                 what reaches a quarter of its peak; equal to the CPU's to the last bit. One block of
//                                 1024; scratch 7·side² words of device memory, in any state.

#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256)
    smooth_rows(const float* __restrict__ map, float* __restrict__ out, const float* __restrict__ kernel, int radius, int side) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= side * side) return;
    const int x = at % side;
    const float* row = map + (at - x);
    float sum = kernel[0] * row[x];
    for (int i = 1; i <= radius; ++i) sum += kernel[i] * (row[max(x - i, 0)] + row[min(x + i, side - 1)]);
    out[at] = sum;
}

extern "C" __global__ void __launch_bounds__(256)
    smooth_columns(const float* __restrict__ map, float* __restrict__ out, const float* __restrict__ kernel, int radius, int side) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= side * side) return;
    const int x = at % side, y = at / side;
    float sum = kernel[0] * map[at];
    for (int i = 1; i <= radius; ++i) {
        sum += kernel[i] * (map[max(y - i, 0) * side + x] + map[min(y + i, side - 1) * side + x]);
    }
    out[at] = sum;
}

constexpr int BINS = 256;

struct Scores {
    float top, max, mean;
    uint32_t finite; // 1 if every number is; otherwise the others are not set
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    heatmap_scores(const float* __restrict__ map, int count, Scores* __restrict__ out) {
    __shared__ float parts[WARPS];
    __shared__ uint32_t bins[BINS];
    __shared__ uint32_t chosen[2]; // the bin, and how many of it are wanted
    __shared__ uint32_t largest;
    __shared__ uint32_t odd;
    const int thread = threadIdx.x, lane = thread % WARP;
    if (thread == 0) largest = odd = 0;
    __syncthreads();
    float sum = 0.0f;
    uint32_t own_largest = 0;
    bool own_odd = false;
    for (int i = thread; i < count; i += THREADS) {
        const float value = map[i];
        own_odd |= !(fabsf(value) <= 3.402823466e38f);
        sum += value;
        own_largest = max(own_largest, ordered(value));
    }
    atomicMax(&largest, own_largest);
    if (own_odd) atomicMax(&odd, 1u);
    const float mean = block_sum(sum, parts) / static_cast<float>(count);
    if (odd) { // the same in every thread: written before the barriers of `block_sum`
        if (thread == 0) out->finite = 0;
        return;
    }
    const uint32_t wanted = (count + 99) / 100;
    uint32_t left = wanted, prefix = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (int i = thread; i < BINS; i += THREADS) bins[i] = 0;
        __syncthreads();
        const uint32_t above = shift == 24 ? 0u : ~0u << (shift + 8);
        for (int i = thread; i < count; i += THREADS) {
            const uint32_t key = ordered(map[i]);
            if ((key & above) == prefix) atomicAdd(&bins[key >> shift & 255], 1u);
        }
        __syncthreads();
        if (thread < WARP) { // lane 0 has the eight uppermost bins
            uint32_t own = 0;
#pragma unroll
            for (int i = 0; i < 8; ++i) own += bins[255 - 8 * lane - i];
            uint32_t through = own;
#pragma unroll
            for (int step = 1; step < WARP; step *= 2) {
                const uint32_t other = __shfl_up_sync(ALL_LANES, through, step);
                if (lane >= step) through += other;
            }
            uint32_t before = through - own;
            if (before < left && left <= through) {
                int bin = 255 - 8 * lane;
                while (before + bins[bin] < left) before += bins[bin--];
                chosen[0] = bin;
                chosen[1] = left - before;
            }
        }
        __syncthreads();
        prefix |= chosen[0] << shift;
        left = chosen[1];
    }
    // `prefix` is the smallest of the largest 1 %, and `left` of its equals belong to them.
    float top = 0.0f;
    for (int i = thread; i < count; i += THREADS) {
        const float value = map[i];
        if (ordered(value) > prefix) top += value;
    }
    top = block_sum(top, parts) + static_cast<float>(left) * from_ordered(prefix);
    if (thread == 0) {
        out->top = top / static_cast<float>(wanted);
        out->max = from_ordered(largest);
        out->mean = mean;
        out->finite = 1;
    }
}

constexpr int MAX_REGIONS = 8;
constexpr float CORE = 0.25f;

struct Region {
    uint16_t left, top, right, bottom;
    uint32_t area;
    float peak;
};

struct Regions {
    uint32_t total, kept;
    Region found[MAX_REGIONS];
};

constexpr uint32_t NOWHERE = 0xffffffffu;

// The first position of the part to which `at` belongs, as far as it is known.
__device__ __forceinline__ uint32_t root(volatile uint32_t* parent, uint32_t at) {
    for (uint32_t next = parent[at]; next != at; next = parent[at]) at = next;
    return at;
}

// Joins two parts under the smaller root. (Playne and Hawick, 2018.)
__device__ __forceinline__ void join(uint32_t* parent, uint32_t a, uint32_t b) {
    a = root(parent, a);
    b = root(parent, b);
    while (a != b) {
        if (a < b) {
            const uint32_t other = a;
            a = b;
            b = other;
        }
        const uint32_t old = atomicMin(&parent[a], b);
        a = old == a ? b : old;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    heatmap_regions(const float* __restrict__ map, float level, int side, uint32_t* __restrict__ scratch,
                    Regions* __restrict__ out) {
    __shared__ uint64_t parts[WARPS];
    __shared__ uint32_t total;
    const int count = side * side, thread = threadIdx.x, lane = thread % WARP;
    uint32_t *parent = scratch, *peak = parent + count, *left = peak + count, *top = left + count, *right = top + count,
             *bottom = right + count, *area = bottom + count;
    if (thread == 0) total = 0;
    for (int i = thread; i < count; i += THREADS) {
        parent[i] = map[i] > level ? i : NOWHERE;
        peak[i] = right[i] = bottom[i] = area[i] = 0;
        left[i] = top[i] = NOWHERE;
    }
    __syncthreads();
    for (int i = thread; i < count; i += THREADS) {
        if (!(map[i] > level)) continue;
        const int y = i / side, x = i % side;
        if (x > 0 && map[i - 1] > level) join(parent, i, i - 1);
        if (y == 0) continue;
        if (x > 0 && map[i - side - 1] > level) join(parent, i, i - side - 1);
        if (map[i - side] > level) join(parent, i, i - side);
        if (x + 1 < side && map[i - side + 1] > level) join(parent, i, i - side + 1);
    }
    __syncthreads();
    for (int i = thread; i < count; i += THREADS) {
        if (!(map[i] > level)) continue;
        const uint32_t first = root(parent, i);
        atomicMax(&peak[first], ordered(map[i]));
        if (first == static_cast<uint32_t>(i)) atomicAdd(&total, 1u);
    }
    __syncthreads();
    for (int i = thread; i < count; i += THREADS) {
        if (!(map[i] > level)) continue;
        const uint32_t first = root(parent, i), y = i / side, x = i % side;
        if (!(map[i] >= CORE * from_ordered(peak[first]))) continue;
        atomicMin(&left[first], x);
        atomicMin(&top[first], y);
        atomicMax(&right[first], x + 1);
        atomicMax(&bottom[first], y + 1);
        atomicAdd(&area[first], 1u);
    }
    // (Boxes and areas are read behind the barriers that follow.)
    // By peak, and among equals by place: the largest key below the last one, eight times.
    uint64_t last = ~0ull;
    const uint32_t kept = min(total, static_cast<uint32_t>(MAX_REGIONS));
    for (uint32_t rank = 0; rank < kept; ++rank) {
        uint64_t best = 0;
        for (int i = thread; i < count; i += THREADS) {
            if (parent[i] != static_cast<uint32_t>(i)) continue;
            const uint64_t key = static_cast<uint64_t>(peak[i]) << 32 | (NOWHERE - i);
            if (key < last) best = max(best, key);
        }
#pragma unroll
        for (int step = WARP / 2; step > 0; step /= 2) best = max(best, __shfl_xor_sync(ALL_LANES, best, step));
        __syncthreads(); // `parts` of the last round have been read
        if (lane == 0) parts[thread / WARP] = best;
        __syncthreads();
        best = parts[lane];
#pragma unroll
        for (int step = WARP / 2; step > 0; step /= 2) best = max(best, __shfl_xor_sync(ALL_LANES, best, step));
        last = best;
        if (thread == 0) {
            const uint32_t i = NOWHERE - static_cast<uint32_t>(best);
            Region& region = out->found[rank];
            region.left = static_cast<uint16_t>(left[i]);
            region.top = static_cast<uint16_t>(top[i]);
            region.right = static_cast<uint16_t>(right[i]);
            region.bottom = static_cast<uint16_t>(bottom[i]);
            region.area = area[i];
            region.peak = from_ordered(peak[i]);
        }
    }
    if (thread == 0) {
        out->total = total;
        out->kept = kept;
    }
}
