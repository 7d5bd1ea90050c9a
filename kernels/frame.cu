// From a camera's frame to the network's input: straightened, averaged over the output pixel, normalised.
//
//   take_frame
//     taken       where the frame lies and how many pixels it has, see `Taken`; both in mapped host memory. Such memory is read
//                 once, in order, since an Orin's GPU caches none of it; all that follows reads the copy.
//     out         the frame in device memory.
//     Eight pixels a thread and turn, in 16-byte loads: block 256, grid any; frame and copy start on 16 bytes. 4 bytes moved a
//     pixel: 1.8 MB at 680², 9 µs at 205 GB/s, 27 µs at 68 GB/s.
//   correct_frame
//     The same for a sensor that is corrected on the way, with the result in both places: the CPU looks for the cell in its own.
//     dark, gain  16-bit values of each of `count` pixels (src/preprocess/sensor): the dark signal with `places` binary
//                 places, the gain in 1/8192. Raw values go up to `white`.
//     Four pixels a thread, in 8-byte loads: block 256, grid ⌈count / 4 / 256⌉; all four start on 8 bytes. 10 bytes moved a
//     pixel: 4.6 MB at 680², 23 µs at 205 GB/s, 68 µs at 68 GB/s.
//   correct_bad
//     Puts the median of up to 8 good neighbours in the place of a bad pixel, after `correct_frame`. `neighbours` are nine
//     words a bad pixel: how many, and their indices. One thread a bad pixel. Both equal the CPU's to the last bit.
//   resample_image
//     The whole frame onto size², as src/preprocess/rectify.rs does it for cells without a border: a triangle as wide as two
//     output pixels, across and then down.
//     frame, placed, image, input     as `rectify_image` has them; of `placed` the width and the scale of values.
//     across, down                    for each axis the first tap of each output pixel, how many there are, and their weights
//                                     in rows of `size`: tap by tap, so that a warp reads its weights side by side.
//     Block 256, a thread an output pixel, grid (⌈size / 256⌉, size). Sums in the order of the CPU: equal to the last bit. Each
//     row of output weighs its own rows of the frame across, which does that twice over and needs no memory between.
//     Bytes moved at 300² → 256²: 0.18 MB of frame, 0.39 MB of results: 3 µs at 205 GB/s, 8 µs at 68 GB/s. Taps: 9 an
//     output pixel there; 289 at 2048², 19 M loads in all that the caches answer.
//   rectify_image
//     frame       width × height 16-bit values, row by row, no padding, in device memory.
//     placed      where the cell lies in it and how it is read, see `Placed`; in mapped host memory too, so that a graph that
//                 was captured once serves every cell.
//     image       size² floats in the frame's own units, row by row: for the gates, and for whoever shows the cell.
//     input       size² halves, value·factor − shift: the network's input.
//     Block 32 × 8 threads: 256 pixels of a row, in 32 spans; grid (⌈size / 256⌉, size). Static shared memory: the spans.
//     Positions are exact in double precision at every eighth pixel and linear in between, in integers, as
//     src/preprocess/rectify.rs has it: equal to the last bit. One thread of eight computes them: 8192 pairs at 256²,
//     where an Orin's SM has two lanes for doubles.
//     Bytes moved at 680² → 256²: 0.9 MB of frame, 0.26 MB of floats, 0.13 MB of halves. Floor 6 µs at 205 GB/s, 19 µs at
//     68 GB/s; with 2×2 taps the 1 M pixels that are read come from the caches, where the device caches host memory.
//   measure_image
//     What the gates look at, of size² floats in the frame's own units (what `rectify_image` gives): the mean, and
//     the root mean square of the four-neighbour Laplacian, divided by the mean; 0 for a black image. One block of 1024, sums by
//     fixed trees. 256 KB at 256², from the cache.
//   normalise_half
//     count floats g₀ → halves: value·factor − shift. One thread a value; 6 bytes moved each.

#include "common.cuh"

constexpr int GAIN_BITS = 13;

__device__ __forceinline__ uint32_t corrected(uint32_t raw, uint32_t dark, uint32_t gain, uint32_t white, int places) {
    const uint32_t lifted = min(raw, white) << places;
    const uint32_t light = lifted > dark ? lifted - dark : 0u;
    const uint32_t value = ((light * gain >> (GAIN_BITS + places - 1)) + 1) >> 1;
    return max(min(value, white), raw >= white ? white : 0u);
}

// A frame to be taken in: none at first, when the kernels run to be captured. `done` becomes `count`.
struct Taken {
    uint16_t* frame;
    int count, done;
};

extern "C" __global__ void __launch_bounds__(256) take_frame(Taken* taken, uint16_t* __restrict__ out) {
    const uint16_t* __restrict__ frame = taken->frame;
    const int count = taken->count, groups = count / 8;
    const int first = blockIdx.x * blockDim.x + threadIdx.x, stride = gridDim.x * blockDim.x;
    for (int at = first; at < groups; at += stride) reinterpret_cast<uint4*>(out)[at] = reinterpret_cast<const uint4*>(frame)[at];
    if (first < count % 8) out[8 * groups + first] = frame[8 * groups + first];
    if (first == 0) taken->done = count;
}

extern "C" __global__ void __launch_bounds__(256)
    correct_frame(Taken* taken, const uint16_t* __restrict__ dark, const uint16_t* __restrict__ gain,
                  uint16_t* __restrict__ out, int count, int white, int places) {
    uint16_t* frame = taken->frame;
    count = min(count, taken->count);
    const int at = 4 * (blockIdx.x * blockDim.x + threadIdx.x);
    if (at + 4 <= count) {
        const uint2 raw = *reinterpret_cast<const uint2*>(frame + at);
        const uint2 d = *reinterpret_cast<const uint2*>(dark + at), g = *reinterpret_cast<const uint2*>(gain + at);
        const auto pair = [&](uint32_t raw, uint32_t d, uint32_t g) {
            return corrected(raw & 0xffff, d & 0xffff, g & 0xffff, white, places) |
                   corrected(raw >> 16, d >> 16, g >> 16, white, places) << 16;
        };
        uint2 both;
        both.x = pair(raw.x, d.x, g.x);
        both.y = pair(raw.y, d.y, g.y);
        *reinterpret_cast<uint2*>(out + at) = both;
        *reinterpret_cast<uint2*>(frame + at) = both;
    } else {
        for (int i = at; i < count; ++i) out[i] = frame[i] = static_cast<uint16_t>(corrected(frame[i], dark[i], gain[i], white, places));
    }
    if (at == 0) taken->done = count;
}

constexpr int NEIGHBOURS = 8;

extern "C" __global__ void __launch_bounds__(256)
    correct_bad(const Taken* __restrict__ taken, uint16_t* pixels, const uint32_t* __restrict__ bad,
                const uint32_t* __restrict__ neighbours, int count) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= count || taken->count == 0) return;
    const uint32_t* own = neighbours + static_cast<size_t>(at) * (1 + NEIGHBOURS);
    const int good = own[0];
    uint32_t values[NEIGHBOURS];
#pragma unroll
    for (int i = 0; i < NEIGHBOURS; ++i) values[i] = i < good ? pixels[own[1 + i]] : 0xffffffffu;
    // Sorted by neighbours that change places, so that all stay in registers.
#pragma unroll
    for (int round = 0; round < NEIGHBOURS; ++round) {
#pragma unroll
        for (int i = round % 2; i + 1 < NEIGHBOURS; i += 2) {
            const uint32_t low = min(values[i], values[i + 1]), high = max(values[i], values[i + 1]);
            values[i] = low;
            values[i + 1] = high;
        }
    }
    uint32_t below = 0, middle = 0;
#pragma unroll
    for (int i = 0; i < NEIGHBOURS; ++i) {
        if (i == good / 2) middle = values[i];
        if (i == (good - 1) / 2) below = values[i];
    }
    pixels[bad[at]] = taken->frame[bad[at]] = static_cast<uint16_t>((below + middle + 1) / 2);
}

constexpr int SPAN = 8;
constexpr int SPANS = 32;
constexpr int ONE = 1 << 16;

// `homography`: from a rectified point to a frame point. `taps`: n of the n×n bilinear taps an output pixel: ⌈scale/1.5⌉ for
// `scale` frame pixels an output pixel, 1 to 16. `factor`, `shift`: 1/(white·0.226) and 0.449/0.226.
struct Placed {
    double homography[9];
    int width, height, taps;
    float factor, shift;
};

// The first tap of a span's first pixel, the way to its next taps across and down, and that to the next pixel.
struct Start {
    int x, y, across_x, across_y, down_x, down_y, next_x, next_y;
    int inside;
};

// To fixed point; what is not a number becomes 0.
__device__ __forceinline__ int fixed(double v) {
    if (v != v) return 0;
    return static_cast<int>(fmin(fmax(v, -8192.0), 24576.0) * ONE);
}

// a + b and a·b that wrap around, where a perspective is absurd.
__device__ __forceinline__ int plus(int a, int b) { return static_cast<int>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b)); }
__device__ __forceinline__ int times(int a, int b) { return static_cast<int>(static_cast<uint32_t>(a) * static_cast<uint32_t>(b)); }

struct Point {
    double x, y, w;
    __device__ __forceinline__ Point(const double (&h)[9], double px, double py) {
        w = 1.0 / (h[6] * px + h[7] * py + h[8]);
        x = (h[0] * px + h[1] * py + h[2]) * w;
        y = (h[3] * px + h[4] * py + h[5]) * w;
    }
};

__device__ __forceinline__ Start start_of(const double (&h)[9], int first, int row, int count, int taps, int end_x, int end_y) {
    const double step = 1.0 / taps, half = (taps - 1) / 2.0;
    const double x = first + 0.5, y = row + 0.5;
    const Point p(h, x, y), q(h, x + count, y);
    const double xi = (q.x - p.x) / count * step, yi = (q.y - p.y) / count * step;
    const double xj = (h[1] - p.x * h[7]) * p.w * step, yj = (h[4] - p.y * h[7]) * p.w * step;
    Start s;
    s.x = plus(fixed(p.x - half * (xi + xj) - 0.5), ONE / 512);
    s.y = plus(fixed(p.y - half * (yi + yj) - 0.5), ONE / 512);
    s.next_x = fixed(xi * taps);
    s.next_y = fixed(yi * taps);
    s.across_x = fixed(xi);
    s.across_y = fixed(yi);
    s.down_x = fixed(xj);
    s.down_y = fixed(yj);
    s.inside = 1;
    for (int corner = 0; corner < 8; ++corner) {
        const int pixel = corner & 4 ? count - 1 : 0, i = corner & 1 ? taps - 1 : 0, j = corner & 2 ? taps - 1 : 0;
        const int at_x = plus(plus(plus(s.x, times(s.next_x, pixel)), times(s.across_x, i)), times(s.down_x, j));
        const int at_y = plus(plus(plus(s.y, times(s.next_y, pixel)), times(s.across_y, i)), times(s.down_y, j));
        if (at_x < 0 || at_x >= end_x || at_y < 0 || at_y >= end_y) s.inside = 0;
    }
    return s;
}

// The value at a fixed-point place, times 65536.
__device__ __forceinline__ int64_t bilinear(const uint16_t* __restrict__ frame, int width, int x, int y) {
    const uint16_t* at = frame + static_cast<size_t>(y >> 16) * width + (x >> 16);
    const int tx = x >> 8 & 255, ty = y >> 8 & 255;
    const int top = at[0] * 256 + tx * (at[1] - at[0]);
    const int bottom = at[width] * 256 + tx * (at[width + 1] - at[width]);
    return static_cast<int64_t>(top) * 256 + static_cast<int64_t>(ty) * (bottom - top);
}

extern "C" __global__ void __launch_bounds__(SPANS* SPAN)
    rectify_image(const uint16_t* __restrict__ frame, const Placed* __restrict__ placed, float* __restrict__ image,
                  __half* __restrict__ input, int size) {
    __shared__ Start starts[SPANS];
    __shared__ Placed here; // one read of host memory a block
    const int row = blockIdx.y;
    const int thread = threadIdx.y * WARP + threadIdx.x, first = blockIdx.x * SPANS * SPAN;
    constexpr int WORDS = sizeof(Placed) / sizeof(int);
    if (thread < WORDS) reinterpret_cast<int*>(&here)[thread] = reinterpret_cast<const int*>(placed)[thread];
    __syncthreads();
    const int width = here.width, taps = here.taps;
    const int end_x = (width - 1) * ONE, end_y = (here.height - 1) * ONE;
    if (threadIdx.y == 0) {
        const int at = first + SPAN * threadIdx.x;
        if (at < size) starts[threadIdx.x] = start_of(here.homography, at, row, min(SPAN, size - at), taps, end_x, end_y);
    }
    __syncthreads();
    const int column = first + thread;
    if (column >= size) return;
    const Start s = starts[thread / SPAN];
    const int pixel = thread % SPAN;
    int row_x = plus(s.x, times(s.next_x, pixel)), row_y = plus(s.y, times(s.next_y, pixel));
    int64_t sum = 0;
    for (int j = 0; j < taps; ++j) {
        int x = row_x, y = row_y;
        for (int i = 0; i < taps; ++i) {
            const int at_x = s.inside ? x : min(max(x, 0), end_x - 1), at_y = s.inside ? y : min(max(y, 0), end_y - 1);
            sum += bilinear(frame, width, at_x, at_y);
            x = plus(x, s.across_x);
            y = plus(y, s.across_y);
        }
        row_x = plus(row_x, s.down_x);
        row_y = plus(row_y, s.down_y);
    }
    const float value = static_cast<float>(sum) * (1.0f / (65536.0f * static_cast<float>(taps * taps)));
    const size_t at = static_cast<size_t>(row) * size + column;
    image[at] = value;
    input[at] = __float2half_rn(value * here.factor - here.shift);
}

// One axis of a resampling, `size` words a row: first taps, how many, and the weights of the first taps, the second, …
__device__ __forceinline__ float weight_of(const uint32_t* __restrict__ axis, int size, int tap, int at) {
    return __uint_as_float(axis[static_cast<size_t>(2 + tap) * size + at]);
}

extern "C" __global__ void __launch_bounds__(256)
    resample_image(const uint16_t* __restrict__ frame, const Placed* __restrict__ placed, const uint32_t* __restrict__ across,
                   const uint32_t* __restrict__ down, float* __restrict__ image, __half* __restrict__ input, int size) {
    const int row = blockIdx.y, column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= size) return;
    const int width = placed->width, taps = across[size + column], rows = down[size + row];
    const uint16_t* from = frame + static_cast<size_t>(down[row]) * width + across[column];
    float value = 0.0f;
    for (int j = 0; j < rows; ++j, from += width) {
        float sum = 0.0f;
        for (int i = 0; i < taps; ++i) sum += static_cast<float>(from[i]) * weight_of(across, size, i, column);
        value += weight_of(down, size, j, row) * sum;
    }
    const size_t at = static_cast<size_t>(row) * size + column;
    image[at] = value;
    input[at] = __float2half_rn(value * placed->factor - placed->shift);
}

extern "C" __global__ void __launch_bounds__(256)
    normalise_half(const float* __restrict__ image, float factor, float shift, __half* __restrict__ out, int count) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at < count) out[at] = __float2half_rn(image[at] * factor - shift);
}

struct Measures {
    float mean, sharpness;
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    measure_image(const float* __restrict__ image, int size, Measures* __restrict__ out) {
    __shared__ float parts[WARPS];
    float sum = 0.0f, energy = 0.0f;
    for (int at = threadIdx.x; at < size * size; at += THREADS) {
        const int x = at % size, y = at / size;
        const float value = image[at];
        sum += value;
        if (x == 0 || y == 0 || x == size - 1 || y == size - 1) continue;
        const float l = image[at - size] + image[at + size] + image[at - 1] + image[at + 1] - 4.0f * value;
        energy = fmaf(l, l, energy);
    }
    const float mean = block_sum(sum, parts) / static_cast<float>(size * size);
    const float square = block_sum(energy, parts) / static_cast<float>((size - 2) * (size - 2));
    if (threadIdx.x == 0) {
        out->mean = mean;
        out->sharpness = mean > 0.0f ? sqrtf(square) / mean : 0.0f;
    }
}
