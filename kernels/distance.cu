// From the four projected maps of a cell to its Mahalanobis distance M = ‖U(y − μ)‖ at every position of the grid.
//
// Inputs
//   maps     four maps of side² pixels, `stride` numbers apart, of which the first k mean something; stride is k rounded up
//            to a multiple of 8 (TensorRT's HWC8). Halves (`_half`) or floats (`_float`); a null pointer is a stage that
//            the embedding does not use.
//   mean     μ as floats, k a position.
//   factors  U packed in halves, or in floats (`_single`), column by column (column j holds its rows j to k−1), k(k+1)/2
//            rounded up to 64 numbers a position, so that each starts on a 128-byte line; see src/gaussian/factors.rs.
//   scale    what row i of U must be multiplied by, k floats.
// Output
//   out      grid² floats, row by row.
//
// Launch of `embed_distance_*`
//   block    32 × W threads, W ≤ 4: one warp a position. Grid ⌈positions / W⌉.
//   shared   W × (2·position_stride(k) + 4·(k rounded up to 32, at least 64)) bytes: 42,496 at k = 100, W = 4. Above 48 KB the
//            limit must be raised first (k > 106 at W = 4), on an Orin up to 163 KB: W ≤ 2 at k = 256. `_single`:
//            4·position_stride(k), and at least 128.
//   `_128`   k ≤ 128; `_256`: k ≤ 256, with twice the registers for sums.
//
// Bytes moved at grid = 64, k = 100: factors 41.4 MB, means 1.6 MB, maps of halves 1.1 MB (read often, but from the
// caches), distances 16 KB: 44.1 MB. Floor by memory bandwidth: 0.65 ms at 68 GB/s (Orin Nano), 0.43 ms at 102 GB/s (Orin
// NX), 0.22 ms at 205 GB/s (AGX Orin), 0.16 ms at 273 GB/s (Thor).
//
// How: each lane starts its share of the position's 10 KB as 16-byte asynchronous copies, reads the embedding out while they
// are on their way, and then owns up to four (eight) rows of U, whose sums stay in registers. Shared memory has room for 12
// warps an SM of an Orin: if half of them wait, 60 KB are on their way, where 205 GB/s and 600 ns need 8 KB an SM.
// Instructions should not bind: in sm_87's code the sums take about 1,600 a position and warp (5.5 for 32 multiply-adds: a load,
// a conversion, a multiply-add, and their addresses), the rest at most 1,100. An AGX Orin issues 83 G a second: 0.13 ms; an
// Orin Nano at 625 MHz 20 G: 0.55 ms.

#include "common.cuh"

template <typename T>
struct Maps {
    const T* data[4];
    int side[4];
};

// One axis of a bilinear interpolation: (1 − weight)·x[low] + weight·x[high]. Half-pixel centres, edge clamped, and the
// place of position i on an axis of `side` pixels computed in integers.
struct Tap {
    int low, high;
    float weight;
    __device__ __forceinline__ Tap(int i, int side, int grid) {
        int at = (2 * i + 1) * side - grid;
        const int pixel = 2 * grid, end = (side - 1) * pixel;
        at = min(max(at, 0), end);
        low = at / pixel;
        high = min(low + 1, side - 1);
        weight = static_cast<float>(at - low * pixel) / static_cast<float>(pixel);
    }
};

// Adds the embedding of a position to `y`: lane l holds the values l, l + 32, l + 64, …
template <typename T, int ROWS>
__device__ __forceinline__ void read_out(const Maps<T>& maps, int grid, int k, int stride, int position, int lane,
                                         float (&y)[ROWS]) {
    const int row = position / grid, column = position % grid;
#pragma unroll
    for (int stage = 0; stage < 4; ++stage) {
        const T* map = maps.data[stage];
        const int side = maps.side[stage];
        if (!map) continue;
        if (side == grid) {
            const T* pixel = map + static_cast<size_t>(position) * stride;
#pragma unroll
            for (int m = 0; m < ROWS; ++m) {
                const int c = lane + WARP * m;
                if (c < k) y[m] += to_float(pixel[c]);
            }
            continue;
        }
        const Tap down(row, side, grid), across(column, side, grid);
        const T* above = map + static_cast<size_t>(down.low) * side * stride;
        const T* below = map + static_cast<size_t>(down.high) * side * stride;
        const int left = across.low * stride, right = across.high * stride;
#pragma unroll
        for (int m = 0; m < ROWS; ++m) {
            const int c = lane + WARP * m;
            if (c >= k) continue;
            const float above_left = to_float(above[left + c]), above_right = to_float(above[right + c]);
            const float at_left = fmaf(down.weight, to_float(below[left + c]) - above_left, above_left);
            const float at_right = fmaf(down.weight, to_float(below[right + c]) - above_right, above_right);
            y[m] = fmaf(1.0f - across.weight, at_left, y[m]);
            y[m] = fmaf(across.weight, at_right, y[m]);
        }
    }
}

// Numbers from one position to the next.
__device__ __forceinline__ int position_stride(int k) { return (k * (k + 1) / 2 + 63) / 64 * 64; }

// A warp's part of the shared memory: a packed position, and y − μ, which is long enough for what `norm` reads too much of the
// position.
template <typename U>
struct Part {
    U* factors;
    float* centred;
    __device__ __forceinline__ Part(unsigned char* shared, int warp, int k) {
        constexpr int NUMBER = sizeof(U);
        const int bytes = NUMBER * position_stride(k), floats = max((k + 31) / 32 * 32, 32 * NUMBER);
        unsigned char* own = shared + static_cast<size_t>(warp) * (bytes + 4 * floats);
        factors = reinterpret_cast<U*>(own);
        centred = reinterpret_cast<float*>(own + bytes);
    }
};

template <typename U>
__device__ __forceinline__ void start_copy(U* shared, const U* factors, int position, int k, int lane) {
    constexpr int EACH = 16 / sizeof(U);
    const int stride = position_stride(k);
    const U* from = factors + static_cast<size_t>(position) * stride;
    for (int at = EACH * lane; at < stride; at += EACH * WARP) copy_async16(shared + at, from + at);
}

// ‖diag(scale)·U·d‖ of one warp. Lane l sums the rows l, l + 32, … up to 32·ROWS: those behind the last row sum what comes
// after the column, and are dropped, so that only the block of columns that meets the diagonal has lanes to clear, and a column
// needs one address for all its rows. What is read behind the position (at most 32·ROWS − k numbers) lies in the warp's part.
template <int ROWS, typename U>
__device__ __forceinline__ float norm(const U* u, const float* d, const float* __restrict__ scale, int k, int lane) {
    float z[ROWS] = {};
    int column = lane; // this lane's row of block 0 of the column, if it had one
#pragma unroll
    for (int block = 0; block < ROWS; ++block) {
        const int first = WARP * block, count = min(WARP, k - first);
        const auto add = [&](int j, float x) {
#pragma unroll
            for (int m = block; m < ROWS; ++m) {
                const float value = to_float(u[column + WARP * m]);
                z[m] = fmaf(m > block || lane >= j ? value : 0.0f, x, z[m]);
            }
            column += k - 1 - (first + j);
        };
        int j = 0;
        for (; j + 4 <= count; j += 4) {
            const float4 x = *reinterpret_cast<const float4*>(d + first + j);
            add(j, x.x);
            add(j + 1, x.y);
            add(j + 2, x.z);
            add(j + 3, x.w);
        }
        for (; j < count; ++j) add(j, d[first + j]);
    }
    float sum = 0.0f;
#pragma unroll
    for (int m = 0; m < ROWS; ++m) {
        if (lane + WARP * m < k) {
            const float scaled = z[m] * scale[lane + WARP * m];
            sum = fmaf(scaled, scaled, sum);
        }
    }
    return sqrtf(warp_sum(sum));
}

template <typename T, typename U, int ROWS>
__device__ __forceinline__ void embed_distance(const Maps<T>& maps, const float* __restrict__ mean,
                                               const U* __restrict__ factors, const float* __restrict__ scale,
                                               float* __restrict__ out, int grid, int k, int stride) {
    DYNAMIC_SHARED(shared);
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int position = blockIdx.x * (blockDim.x / WARP) + warp;
    if (position >= grid * grid) return; // a whole warp; none waits for another
    const Part<U> part(shared, warp, k);
    start_copy(part.factors, factors, position, k, lane);
    float y[ROWS];
#pragma unroll
    for (int m = 0; m < ROWS; ++m) {
        const int c = lane + WARP * m;
        y[m] = c < k ? -mean[static_cast<size_t>(position) * k + c] : 0.0f;
    }
    read_out<T, ROWS>(maps, grid, k, stride, position, lane, y);
#pragma unroll
    for (int m = 0; m < ROWS; ++m) {
        const int c = lane + WARP * m;
        if (c < k) part.centred[c] = y[m];
    }
    copies_arrived();
    __syncwarp();
    const float distance = norm<ROWS>(part.factors, part.centred, scale, k, lane);
    if (lane == 0) out[position] = distance;
}

// Registers are left to the compiler up to what 12 warps an SM allow: shared memory admits no more.
#define EMBED_DISTANCE(name, type, number, rows)                                                                        \
    extern "C" __global__ void __launch_bounds__(128, 3)                                                                \
        name(Maps<type> maps, const float* __restrict__ mean, const number* __restrict__ factors,                       \
             const float* __restrict__ scale, float* __restrict__ out, int grid, int k, int stride) {                   \
        embed_distance<type, number, rows>(maps, mean, factors, scale, out, grid, k, stride);                           \
    }

EMBED_DISTANCE(embed_distance_half_128, __half, __half, 4)
EMBED_DISTANCE(embed_distance_half_256, __half, __half, 8)
EMBED_DISTANCE(embed_distance_half_128_single, __half, float, 4)
EMBED_DISTANCE(embed_distance_half_256_single, __half, float, 8)
EMBED_DISTANCE(embed_distance_float_128, float, __half, 4)
EMBED_DISTANCE(embed_distance_float_256, float, __half, 8)

// Unfused, for checks. Reads the embedding out: grid² × k floats. One warp a position, as above; no shared memory.
template <typename T>
__device__ __forceinline__ void upsample(const Maps<T>& maps, float* __restrict__ out, int grid, int k, int stride) {
    const int lane = threadIdx.x % WARP;
    const int position = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (position >= grid * grid) return;
    float y[8] = {};
    read_out<T, 8>(maps, grid, k, stride, position, lane, y);
#pragma unroll
    for (int m = 0; m < 8; ++m) {
        const int c = lane + WARP * m;
        if (c < k) out[static_cast<size_t>(position) * k + c] = y[m];
    }
}

extern "C" __global__ void __launch_bounds__(128)
    upsample_half(Maps<__half> maps, float* __restrict__ out, int grid, int k, int stride) {
    upsample<__half>(maps, out, grid, k, stride);
}

extern "C" __global__ void __launch_bounds__(128)
    upsample_float(Maps<float> maps, float* __restrict__ out, int grid, int k, int stride) {
    upsample<float>(maps, out, grid, k, stride);
}

// Unfused, for checks: the distance of an embedding of grid² × k floats, straight from memory, with one thread a position
// and the sums of one row at a time. Block any, grid ⌈positions / block⌉; no shared memory.
extern "C" __global__ void __launch_bounds__(128)
    distance_plain(const float* __restrict__ embedding, const float* __restrict__ mean, const __half* __restrict__ factors,
                   const float* __restrict__ scale, float* __restrict__ out, int grid, int k) {
    const int position = blockIdx.x * blockDim.x + threadIdx.x;
    if (position >= grid * grid) return;
    const __half* u = factors + static_cast<size_t>(position) * position_stride(k);
    const float* y = embedding + static_cast<size_t>(position) * k;
    const float* mu = mean + static_cast<size_t>(position) * k;
    float sum = 0.0f;
    for (int i = 0; i < k; ++i) {
        float z = 0.0f;
        int at = i; // row i of column j
        for (int j = 0; j <= i; ++j) {
            z = fmaf(__half2float(u[at]), y[j] - mu[j], z);
            at += k - 1 - j;
        }
        z *= scale[i];
        sum = fmaf(z, z, sum);
    }
    out[position] = sqrtf(sum);
}
