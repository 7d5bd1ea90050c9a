// What a judge looks at, made where the cell lies: turned copies of an image, the backbone's stages pooled, and the
// planes of the classifier's network, as src/classifier has them.
//
//   turn_halves
//     images      the image as it is, side² halves for each of `planes`, row by row; behind it room for its copies.
//     ways        how each copy is laid, from copy 1 on: bit 2 mirrors left and right, bits 0 and 1 are quarter turns
//                 clockwise behind that, as planes.rs `turned` numbers them.
//     One thread a half: block any, grid (⌈side² / block⌉, planes · copies). 4 bytes moved a half of a copy; a copy that is
//     turned by a quarter is read down its columns, from the cache: an image of 256² has 128 KB. Equal to the last bit.
//   pool_stages
//     stages      of each view side² pixels of 64, 128, 256 and 512 halves, channels last; each stage on 16 bytes.
//     out         of each view 960 means, 960 maxima, 960 standard deviations, channels in the order of the stages; it may be
//                 mapped host memory.
//     Block 256 threads: 16 channels, 32 bytes of each pixel, in 16-byte loads, 128 pixels at a time; the last sums by a
//     fixed tree. Grid (60, views). Sums in single precision, of what each pixel differs from the first: within 5e-6, and
//     1e-4 of the CPU's, which adds all pixels in one row. A number that is not finite gives a mean that is not. 25 KB of
//     static shared memory: what each thread has summed.
//     Bytes moved at 256²: 0.98 MB a view, read once, just after the network has written it; 11.5 KB written. Floor 4.8 µs at
//     205 GB/s, 14 µs at 68 GB/s.
//   judge_planes
//     heatmap     grid² floats, the distances, smoothed; `unit` is 1/√k.
//     image       size² halves, the network's input.
//     planes      64² halves: 2·ln(M/√k) of the heatmap; and, with two planes, 64² more: the image. Each pixel is the mean
//                 of what it covers.
//     One thread a pixel of a plane: block any, grid (⌈64² / block⌉, planes). 0.13 MB of image and 16 KB of heatmap read at
//     256² and grid 64, from the cache; its floor is the launch. Equal to the CPU's but for the logarithm's last bit.

#include "common.cuh"

constexpr int MOST_COPIES = 8;

struct Ways {
    int way[MOST_COPIES]; // of each copy from the first on, which is the image itself
};

extern "C" __global__ void __launch_bounds__(256) turn_halves(__half* images, int side, int planes, Ways ways) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x, count = side * side;
    if (at >= count) return;
    const int way = ways.way[1 + blockIdx.y / planes], last = side - 1;
    const int x = at % side, y = at / side;
    int from_x = x, from_y = y;
    if ((way & 3) == 1) {
        from_x = y;
        from_y = last - x;
    } else if ((way & 3) == 2) {
        from_x = last - x;
        from_y = last - y;
    } else if ((way & 3) == 3) {
        from_x = last - y;
        from_y = x;
    }
    if (way & 4) from_x = last - from_x;
    const __half* from = images + static_cast<size_t>(blockIdx.y % planes) * count;
    images[static_cast<size_t>(planes + blockIdx.y) * count + at] = from[from_y * side + from_x];
}

constexpr int CHANNELS = 960;
constexpr int POOL_THREADS = 256;
constexpr int EIGHT = 8;                    // halves of a load
constexpr int LOADS = 2;                    // loads of a block's part of a pixel
constexpr int OWN = LOADS * EIGHT;          // channels of a block
constexpr int PIXELS = POOL_THREADS / LOADS; // pixels at a time
constexpr int SHARES = POOL_THREADS / OWN;   // threads of a channel, when the pixels' sums are added

struct Stages {
    const __half* data[4];
    int side[4];
};

// One number of each channel and pixel of a block; a row longer, so that its columns lie in different banks.
typedef float Sums[OWN][PIXELS + 1];

__device__ __forceinline__ void load_eight(const __half* from, float (&to)[EIGHT]) {
    const float4 words = *reinterpret_cast<const float4*>(from);
    const uint32_t pairs[4] = {__float_as_uint(words.x), __float_as_uint(words.y), __float_as_uint(words.z), __float_as_uint(words.w)};
#pragma unroll
    for (int i = 0; i < EIGHT; ++i) {
        to[i] = __half2float(__ushort_as_half(static_cast<unsigned short>(pairs[i / 2] >> (16 * (i % 2)))));
    }
}

// Adds up every STEP-th of a channel's first COUNT places, from `at` on, where the result is left.
template <int STEP, int COUNT>
__device__ __forceinline__ void gather(Sums& shifts, Sums& squares, Sums& maxima, int channel, int at) {
    float shift = 0.0f, square = 0.0f, largest = maxima[channel][at];
#pragma unroll
    for (int i = 0; i < COUNT; i += STEP) {
        shift += shifts[channel][at + i];
        square += squares[channel][at + i];
        largest = fmaxf(largest, maxima[channel][at + i]);
    }
    shifts[channel][at] = shift;
    squares[channel][at] = square;
    maxima[channel][at] = largest;
}

extern "C" __global__ void __launch_bounds__(POOL_THREADS) pool_stages(Stages stages, float* __restrict__ out) {
    __shared__ Sums shifts, squares, maxima;
    // Stage s has 64·2^s channels, which 4·2^s blocks share; before it come 64·(2^s − 1).
    int stage = 0, block = blockIdx.x;
    while (block >= (64 << stage) / OWN) block -= (64 << stage++) / OWN;
    const __half* map = stages.data[0];
    int side = stages.side[0];
#pragma unroll
    for (int s = 1; s < 4; ++s) { // an index would put the arguments on the stack
        if (s != stage) continue;
        map = stages.data[s];
        side = stages.side[s];
    }
    const int channels = 64 << stage, first = block * OWN, pixels = side * side;
    map += static_cast<size_t>(blockIdx.y) * pixels * channels + first;
    const int thread = threadIdx.x, part = thread % LOADS;
    const __half* own = map + part * EIGHT;

    float origin[EIGHT], shift[EIGHT], square[EIGHT], largest[EIGHT];
    load_eight(own, origin);
#pragma unroll
    for (int i = 0; i < EIGHT; ++i) {
        shift[i] = square[i] = 0.0f;
        largest[i] = origin[i];
    }
#pragma unroll 4
    for (int pixel = thread / LOADS; pixel < pixels; pixel += PIXELS) {
        float x[EIGHT];
        load_eight(own + static_cast<size_t>(pixel) * channels, x);
#pragma unroll
        for (int i = 0; i < EIGHT; ++i) {
            const float d = x[i] - origin[i];
            shift[i] += d;
            square[i] = fmaf(d, d, square[i]);
            largest[i] = fmaxf(largest[i], x[i]);
        }
    }
#pragma unroll
    for (int i = 0; i < EIGHT; ++i) {
        const int channel = part * EIGHT + i, pixel = thread / LOADS;
        shifts[channel][pixel] = shift[i];
        squares[channel][pixel] = square[i];
        maxima[channel][pixel] = largest[i];
    }
    __syncthreads();
    // 16 threads a channel, then one.
    gather<SHARES, PIXELS>(shifts, squares, maxima, thread / SHARES, thread % SHARES);
    __syncthreads();
    if (thread >= OWN) return;
    gather<1, SHARES>(shifts, squares, maxima, thread, 0);
    const float share = 1.0f / static_cast<float>(pixels);
    const float mean = shifts[thread][0] * share, variance = squares[thread][0] * share - mean * mean;
    float* row = out + static_cast<size_t>(blockIdx.y) * 3 * CHANNELS + (channels - 64) + first + thread;
    row[0] = __half2float(map[thread]) + mean;
    row[CHANNELS] = maxima[thread][0];
    row[2 * CHANNELS] = sqrtf(variance < 0.0f ? 0.0f : variance);
}

constexpr float CLOSEST = 1e-3f; // the smallest distance that a logarithm is taken of

// Pixel (x, y) of side × side of a square map: the mean of what it covers, in the order of the CPU's sums.
template <typename T>
__device__ __forceinline__ float covered(const T* __restrict__ map, int size, int x, int y, int side) {
    if (size == side) return to_float(map[y * side + x]);
    // In units of 1/side of a pixel of the map.
    const int left = x * size, right = left + size, top = y * size, bottom = top + size;
    float sum = 0.0f;
    for (int v = top / side; v * side < bottom; ++v) {
        const float high = static_cast<float>(min(bottom, (v + 1) * side) - max(top, v * side));
        float row = 0.0f;
        for (int u = left / side; u * side < right; ++u) {
            row += static_cast<float>(min(right, (u + 1) * side) - max(left, u * side)) * to_float(map[v * size + u]);
        }
        sum += high * row;
    }
    return sum * (1.0f / static_cast<float>(size * size));
}

extern "C" __global__ void __launch_bounds__(256)
    judge_planes(const float* __restrict__ heatmap, int grid, float unit, const __half* __restrict__ image, int size,
                 __half* __restrict__ planes, int side) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= side * side) return;
    const int x = at % side, y = at / side;
    float value;
    if (blockIdx.y == 0) {
        const float distance = covered(heatmap, grid, x, y, side);
        // What is not finite stays so.
        value = distance * unit > CLOSEST ? 2.0f * logf(distance * unit) : distance * 0.0f + 2.0f * logf(CLOSEST);
    } else {
        value = covered(image, size, x, y, side);
    }
    planes[blockIdx.y * (side * side) + at] = __float2half_rn(value);
}
