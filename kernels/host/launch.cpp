// The kernels as a host library with one entry, shaped like cuLaunchKernel: a name, the launch, and the addresses of the
// arguments.
//
//     g++ -std=c++17 -O2 -fPIC -shared -ffp-contract=off -DCELLGATE_HOST -o libkernels.so kernels/host/launch.cpp

#include "../distance.cu"
#include "../frame.cu"
#include "../heatmap.cu"
#include "../judge.cu"

#include <map>
#include <tuple>
#include <utility>

// Two kernels with mistakes, to see that they show.
extern "C" __global__ void mistake_no_barrier(float* out) {
    DYNAMIC_SHARED(shared);
    float* values = reinterpret_cast<float*>(shared);
    values[threadIdx.x] = static_cast<float>(threadIdx.x);
    out[threadIdx.x] = values[threadIdx.x ^ 1]; // the other thread may not have written it
}

extern "C" __global__ void mistake_divergent_barrier(float* out) {
    if (threadIdx.x < 16) __syncthreads();
    out[threadIdx.x] = warp_sum(1.0f);
}

extern "C" __global__ void mistake_no_wait(const float* from, float* out) {
    DYNAMIC_SHARED(shared);
    copy_async16(shared, from);
    __syncwarp();
    out[threadIdx.x] = reinterpret_cast<float*>(shared)[threadIdx.x % 4];
    copies_arrived();
}

namespace {

using Call = std::function<void()>;

// A kernel that can be given its arguments: they are copied, as a driver does.
struct Kernel {
    std::function<Call(void**)> bind;
};

template <class... Args, size_t... I>
Kernel with_arguments(void (*kernel)(Args...), std::index_sequence<I...>) {
    return {[kernel](void** arguments) {
        const std::tuple<std::decay_t<Args>...> copied(*static_cast<std::decay_t<Args>*>(arguments[I])...);
        return Call([kernel, copied] { std::apply(kernel, copied); });
    }};
}

template <class... Args>
Kernel callable(void (*kernel)(Args...)) {
    return with_arguments(kernel, std::index_sequence_for<Args...>{});
}

const std::map<std::string, Kernel>& kernels() {
#define KERNEL(name) {#name, callable(name)}
    static const std::map<std::string, Kernel> all{
        KERNEL(embed_distance_half_128),
        KERNEL(embed_distance_half_256),
        KERNEL(embed_distance_half_128_single),
        KERNEL(embed_distance_half_256_single),
        KERNEL(embed_distance_float_128),
        KERNEL(embed_distance_float_256),
        KERNEL(upsample_half),
        KERNEL(upsample_float),
        KERNEL(distance_plain),
        KERNEL(smooth_rows),
        KERNEL(smooth_columns),
        KERNEL(heatmap_scores),
        KERNEL(heatmap_regions),
        KERNEL(take_frame),
        KERNEL(correct_frame),
        KERNEL(correct_bad),
        KERNEL(rectify_image),
        KERNEL(resample_image),
        KERNEL(normalise_half),
        KERNEL(measure_image),
        KERNEL(turn_halves),
        KERNEL(pool_stages),
        KERNEL(judge_planes),
        KERNEL(mistake_no_barrier),
        KERNEL(mistake_divergent_barrier),
        KERNEL(mistake_no_wait),
    };
#undef KERNEL
    return all;
}

} // namespace

// 0, or −1 with the reason in `error` (of `error_size` bytes). `order`: see host::Launch.
extern "C" int cellgate_launch(const char* name, const unsigned grid[3], const unsigned block[3], size_t shared_bytes, unsigned order,
                               void** arguments, char* error, size_t error_size) {
    try {
        const auto found = kernels().find(name);
        if (found == kernels().end()) host::fail(std::string("there is no kernel ") + name);
        const Call call = found->second.bind(arguments);
        const host::Launch launch{{grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, shared_bytes, order};
        host::run(launch, call);
        return 0;
    } catch (const std::exception& what) {
        if (error_size) {
            std::strncpy(error, what.what(), error_size - 1);
            error[error_size - 1] = 0;
        }
        return -1;
    }
}
