// A test double for libcuda.so.1: device memory is the host's, kernels are those of launch.cpp, and a launch is over when it
// returns. It refuses what a driver refuses: images that are no PTX, functions that a module does not have, blocks that are larger
// than the PTX allows, memory that was not allocated.
//
//     g++ -std=c++17 -O2 -fPIC -shared -ffp-contract=off -DCELLGATE_HOST -o libcuda.so.1 kernels/host/fake_cuda.cpp

#include "launch.cpp"

#include <cstdio>
#include <mutex>

using Address = unsigned long long;
using Handle = void*;

namespace {

enum Status { OK = 0, INVALID_VALUE = 1, NO_DEVICE = 101, INVALID_IMAGE = 200, NOT_FOUND = 500, LAUNCH_FAILED = 719 };

std::mutex lock;
std::map<Address, size_t> memory;

struct Function {
    std::string name;
    unsigned threads; // largest block
    size_t shared;    // dynamic shared memory that has been granted
};

struct Module {
    std::map<std::string, Function> functions;
};

bool allocated(Address at, size_t bytes) {
    const std::lock_guard<std::mutex> guard(lock);
    auto found = memory.upper_bound(at);
    if (found == memory.begin()) return false;
    --found;
    return at + bytes <= found->first + found->second;
}

} // namespace

#define API extern "C" __attribute__((visibility("default"))) int

API cuInit(unsigned) { return OK; }
API cuDeviceGet(int* device, int ordinal) { return *device = 0, ordinal ? NO_DEVICE : OK; }
API cuDeviceGetName(char* name, int size, int) { return std::snprintf(name, size, "fake CUDA device"), OK; }
API cuDeviceGetAttribute(int* value, int, int) { return *value = 0, OK; }
API cuDevicePrimaryCtxRetain(Handle* context, int) { return *context = &memory, OK; }
API cuCtxSetCurrent(Handle context) { return context == &memory ? OK : INVALID_VALUE; }
API cuCtxSynchronize() { return OK; }
API cuEventCreate(Handle* event, unsigned) { return *event = &memory, OK; }
API cuEventRecord(Handle, Handle) { return OK; }
API cuEventElapsedTime(float* milliseconds, Handle, Handle) { return *milliseconds = 1.0f, OK; }

API cuGetErrorName(int status, const char** name) {
    switch (status) {
        case INVALID_VALUE: *name = "CUDA_ERROR_INVALID_VALUE"; break;
        case NO_DEVICE: *name = "CUDA_ERROR_INVALID_DEVICE"; break;
        case INVALID_IMAGE: *name = "CUDA_ERROR_INVALID_IMAGE"; break;
        case NOT_FOUND: *name = "CUDA_ERROR_NOT_FOUND"; break;
        default: *name = "CUDA_ERROR_LAUNCH_FAILED";
    }
    return OK;
}

API cuModuleLoadData(Handle* module, const char* image) {
    if (!std::strstr(image, "\n.version 8.5\n.target sm_80\n")) return INVALID_IMAGE;
    auto* loaded = new Module;
    for (const char* at = image; (at = std::strstr(at, ".entry "));) {
        at += 7;
        const std::string name(at, std::strcspn(at, "("));
        const char *limit = std::strstr(at, ".maxntid "), *end = std::strchr(at, '{');
        const unsigned threads = limit && limit < end ? std::atoi(limit + 9) : 1024;
        loaded->functions[name] = {name, threads, 48 << 10};
    }
    *module = loaded;
    return OK;
}

API cuModuleGetFunction(Handle* function, Handle module, const char* name) {
    auto& functions = static_cast<Module*>(module)->functions;
    const auto found = functions.find(name);
    if (found == functions.end() || !kernels().count(name)) return NOT_FOUND;
    *function = &found->second;
    return OK;
}

API cuFuncSetAttribute(Handle function, int attribute, int value) {
    if (attribute != 8 || value < 0 || value > 163 << 10) return INVALID_VALUE; // an Orin's largest block
    static_cast<Function*>(function)->shared = value;
    return OK;
}

API cuLaunchKernel(Handle function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, Handle,
                   void** arguments, void**) {
    const auto& what = *static_cast<Function*>(function);
    if (bx * by * bz > what.threads || shared > std::max<size_t>(what.shared, 48 << 10)) return INVALID_VALUE;
    const unsigned grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
    char error[256];
    if (!cellgate_launch(what.name.c_str(), grid, block, shared, 7, arguments, error, sizeof error)) return OK;
    std::fprintf(stderr, "fake CUDA device: %s: %s\n", what.name.c_str(), error);
    return LAUNCH_FAILED;
}

API cuMemAlloc_v2(Address* at, size_t bytes) {
    if (!bytes) return INVALID_VALUE;
    void* got = std::aligned_alloc(512, (bytes + 511) / 512 * 512);
    std::memset(got, 0xff, bytes);
    const std::lock_guard<std::mutex> guard(lock);
    *at = reinterpret_cast<Address>(got);
    memory[*at] = bytes;
    return OK;
}

API cuMemFree_v2(Address at) {
    const std::lock_guard<std::mutex> guard(lock);
    if (!memory.erase(at)) return INVALID_VALUE;
    std::free(reinterpret_cast<void*>(at));
    return OK;
}

API cuMemcpyHtoD_v2(Address to, const void* from, size_t bytes) {
    if (!allocated(to, bytes)) return INVALID_VALUE;
    std::memcpy(reinterpret_cast<void*>(to), from, bytes);
    return OK;
}

API cuMemcpyDtoH_v2(void* to, Address from, size_t bytes) {
    if (!allocated(from, bytes)) return INVALID_VALUE;
    std::memcpy(to, reinterpret_cast<const void*>(from), bytes);
    return OK;
}
