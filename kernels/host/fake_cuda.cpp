// A test double for libcuda.so.1: device memory is the host's, and kernels are those of launch.cpp.
//
//     g++ -std=c++17 -O2 -fPIC -shared -Wl,-soname,libcuda.so.1 -ffp-contract=off -DCELLGATE_HOST -o libcuda.so.1 kernels/host/fake_cuda.cpp
//
// It is as late as a device: what is put on a stream happens when somebody waits for it, and results that are read before are
// not there. Host memory that is mapped has another address on the device. It refuses what a driver refuses: calls without a
// context, images that are no PTX, functions that a module does not have, blocks that are larger than the PTX allows, copies
// beyond what was allocated, and while a stream is captured, whatever may not be captured.
//
// Tests steer it by `fake_cuda_*` below: the n-th call fails, what is alive is counted.

#include "launch.cpp"

#include <atomic>
#include <cstdio>
#include <mutex>

#include <unistd.h>

using Address = unsigned long long;
using Handle = void*;

namespace {

enum Status {
    OK = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    UNSUPPORTED_PTX = 222,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    LAUNCH_FAILED = 719,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
};

struct Name {
    int status;
    const char *name, *text;
};
constexpr Name NAMES[] = {
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {UNSUPPORTED_PTX, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the provided PTX was compiled with an unsupported toolchain."},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
};

// What a test sets before it opens the device.
struct Settings {
    long fail_at = 0; // the number of the call that fails, from 1; 0: none
    int fail_with = LAUNCH_FAILED;
    int major = 8, minor = 7, devices = 1, driver = 12060;
    size_t memory = size_t(8) << 30;
    int shared = 163 << 10; // an Orin's largest block
};

using Work = std::function<int()>;

struct Function {
    std::string name;
    unsigned threads; // largest block
    size_t shared;    // dynamic shared memory that has been granted
};
struct Module {
    std::map<std::string, Function> functions;
};
struct Stream {
    std::vector<Work> queued;
    bool capturing = false, broken = false;
    std::vector<Work> captured;
    int failed = OK;
};
struct Graph {
    std::vector<Work> work;
};
struct Mapping {
    Address device;
    size_t bytes, mapped;
};

// One at a time, as far as the driver's own state goes. (Kernels are the caller's thread's.)
std::recursive_mutex lock;
Settings settings;
long calls = 0;
std::map<Address, size_t> memory;       // device memory, mapped host memory included
std::map<Handle, Mapping> mappings;     // host address
std::map<Handle, const char*> handles;  // everything else that is alive
int contexts = 0;
size_t used = 0;
int context_marker;
thread_local Handle current = nullptr;
thread_local std::string last_call;

// Counts a call; a status other than OK if it is the one that is to fail.
int enter(const char* name) {
    last_call = name;
    return ++calls == settings.fail_at ? settings.fail_with : OK;
}

template <class T>
T* make(const char* kind) {
    T* made = new T;
    handles[made] = kind;
    return made;
}
template <class T>
T* get(Handle handle, const char* kind) {
    const auto found = handles.find(handle);
    return found != handles.end() && !std::strcmp(found->second, kind) ? static_cast<T*>(handle) : nullptr;
}
template <class T>
bool unmake(Handle handle, const char* kind) {
    T* made = get<T>(handle, kind);
    if (!made) return false;
    handles.erase(handle);
    delete made;
    return true;
}

bool allocated(Address at, size_t bytes) {
    auto found = memory.upper_bound(at);
    if (found == memory.begin()) return false;
    --found;
    return at + bytes <= found->first + found->second;
}

// Host memory that the driver allocated, or any other, which must not reach into such memory's neighbours.
bool pinned(const void* at, size_t bytes) {
    auto found = mappings.upper_bound(const_cast<void*>(at));
    if (found == mappings.begin()) return false;
    --found;
    return static_cast<const char*>(at) + bytes <= static_cast<const char*>(found->first) + found->second.bytes;
}

// Puts work on a stream, to be done when it is waited for; on the default stream at once.
int put(Handle handle, Work work) {
    if (!handle) return work();
    auto* stream = get<Stream>(handle, "stream");
    if (!stream) return INVALID_HANDLE;
    (stream->capturing ? stream->captured : stream->queued).push_back(std::move(work));
    return OK;
}

int finish(Stream& stream) {
    for (auto& work : stream.queued)
        if (!stream.failed) stream.failed = work();
    stream.queued.clear();
    return stream.failed;
}

// What may not be called while a stream is captured breaks the capture.
int not_while_capturing() {
    for (auto& [handle, kind] : handles) {
        if (std::strcmp(kind, "stream")) continue;
        auto* stream = static_cast<Stream*>(handle);
        if (stream->capturing) return stream->broken = true, CAPTURE_UNSUPPORTED;
    }
    return OK;
}

} // namespace

#define API extern "C" __attribute__((visibility("default"))) int
// The head of a call: it may be told to fail, and needs a context.
#define CALL(name)                                            \
    std::unique_lock<std::recursive_mutex> guard(lock);       \
    if (const int told = enter(name)) return told
#define CALL_IN_CONTEXT(name) \
    CALL(name);               \
    if (!current) return INVALID_CONTEXT
// The head of a call that gives something back: where it is told to fail it does so after its work, as a driver does that
// reports what failed before.
#define CALL_TO_END(name)                                    \
    const std::lock_guard<std::recursive_mutex> guard(lock); \
    const int told = enter(name);                            \
    if (!current) return INVALID_CONTEXT

// ---- For tests ----

// From here on calls are counted from 1, and call `at` (0: none) fails with `status`.
extern "C" void fake_cuda_fail(long at, int status) {
    const std::lock_guard<std::recursive_mutex> guard(lock);
    calls = 0;
    settings.fail_at = at;
    settings.fail_with = status;
}
extern "C" long fake_cuda_calls() { return calls; }
// Things that were made and not given back: contexts, memory, modules, streams, graphs, events.
extern "C" long fake_cuda_alive() {
    const std::lock_guard<std::recursive_mutex> guard(lock);
    return contexts + static_cast<long>(memory.size() + handles.size());
}
// The device: its compute capability, the driver's CUDA (12060), how many there are, bytes of memory.
extern "C" void fake_cuda_device(int major, int minor, int driver, int devices, size_t bytes) {
    const std::lock_guard<std::recursive_mutex> guard(lock);
    settings.major = major;
    settings.minor = minor;
    settings.driver = driver;
    settings.devices = devices;
    settings.memory = bytes;
}

// ---- The driver ----

API cuGetErrorName(int status, const char** name) {
    for (const auto& known : NAMES)
        if (known.status == status) return *name = known.name, OK;
    return *name = nullptr, INVALID_VALUE;
}
API cuGetErrorString(int status, const char** text) {
    for (const auto& known : NAMES)
        if (known.status == status) return *text = known.text, OK;
    return *text = nullptr, INVALID_VALUE;
}

API cuInit(unsigned) {
    CALL("cuInit");
    return settings.devices ? OK : NO_DEVICE;
}
API cuDriverGetVersion(int* version) {
    CALL("cuDriverGetVersion");
    return *version = settings.driver, OK;
}
API cuDeviceGetCount(int* count) {
    CALL("cuDeviceGetCount");
    return *count = settings.devices, OK;
}
API cuDeviceGet(int* device, int ordinal) {
    CALL("cuDeviceGet");
    return *device = 0, ordinal < settings.devices ? OK : INVALID_DEVICE;
}
API cuDeviceGetName(char* name, int size, int) {
    CALL("cuDeviceGetName");
    return std::snprintf(name, size, "fake CUDA device"), OK;
}
API cuDeviceGetAttribute(int* value, int attribute, int) {
    CALL("cuDeviceGetAttribute");
    switch (attribute) {
        case 75: *value = settings.major; break;
        case 76: *value = settings.minor; break;
        case 97: *value = settings.shared; break;
        default: *value = 0;
    }
    return OK;
}
API cuMemGetInfo_v2(size_t* free, size_t* total) {
    CALL_IN_CONTEXT("cuMemGetInfo");
    return *total = settings.memory, *free = settings.memory - std::min(used, settings.memory), OK;
}
API cuDevicePrimaryCtxRetain(Handle* context, int) {
    CALL("cuDevicePrimaryCtxRetain");
    return ++contexts, *context = &context_marker, OK;
}
API cuDevicePrimaryCtxRelease_v2(int) {
    CALL_TO_END("cuDevicePrimaryCtxRelease");
    return contexts ? (--contexts, told) : INVALID_CONTEXT;
}
API cuCtxSetCurrent(Handle context) {
    // Where this is told to fail the thread still has the context that it had.
    CALL("cuCtxSetCurrent");
    if (context && context != &context_marker) return INVALID_CONTEXT;
    return current = context, OK;
}
API cuCtxSynchronize() {
    CALL_IN_CONTEXT("cuCtxSynchronize");
    for (auto& [handle, kind] : handles)
        if (!std::strcmp(kind, "stream"))
            if (const int failed = finish(*static_cast<Stream*>(handle))) return failed;
    return OK;
}

API cuModuleLoadData(Handle* module, const char* image) {
    CALL_IN_CONTEXT("cuModuleLoadData");
    if (!std::strstr(image, "\n.version 8.5\n.target sm_80\n")) return INVALID_IMAGE;
    if (settings.driver < 12050) return UNSUPPORTED_PTX;
    auto* loaded = make<Module>("module");
    for (const char* at = image; (at = std::strstr(at, ".entry "));) {
        at += 7;
        const std::string name(at, std::strcspn(at, "("));
        const char *limit = std::strstr(at, ".maxntid "), *end = std::strchr(at, '{');
        const unsigned threads = limit && limit < end ? std::atoi(limit + 9) : 1024;
        loaded->functions[name] = {name, threads, 48 << 10};
    }
    return *module = loaded, OK;
}
API cuModuleUnload(Handle module) {
    CALL_TO_END("cuModuleUnload");
    return unmake<Module>(module, "module") ? told : INVALID_HANDLE;
}
API cuModuleGetFunction(Handle* function, Handle module, const char* name) {
    CALL_IN_CONTEXT("cuModuleGetFunction");
    auto* loaded = get<Module>(module, "module");
    if (!loaded) return INVALID_HANDLE;
    const auto found = loaded->functions.find(name);
    if (found == loaded->functions.end() || !kernels().count(name)) return NOT_FOUND;
    return *function = &found->second, OK;
}
API cuFuncSetAttribute(Handle function, int attribute, int value) {
    CALL_IN_CONTEXT("cuFuncSetAttribute");
    if (attribute != 8 || value < 0 || value > settings.shared) return INVALID_VALUE;
    return static_cast<Function*>(function)->shared = value, OK;
}
API cuLaunchKernel(Handle function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   Handle stream, void** arguments, void**) {
    CALL_IN_CONTEXT("cuLaunchKernel");
    const auto& what = *static_cast<Function*>(function);
    const size_t block = size_t(bx) * by * bz;
    if (!gx || !gy || !gz || !block || block > what.threads || shared > std::max<size_t>(what.shared, 48 << 10)) return INVALID_VALUE;
    const std::string name = what.name;
    const Call call = kernels().at(name).bind(arguments);
    const Work work = [=] {
        const host::Launch launch{{gx, gy, gz}, {bx, by, bz}, shared, 7};
        try {
            host::run(launch, call);
            return int(OK);
        } catch (const std::exception& error) {
            std::fprintf(stderr, "fake CUDA device: %s: %s\n", name.c_str(), error.what());
            return int(LAUNCH_FAILED);
        }
    };
    if (stream) return put(stream, work);
    guard.unlock(); // threads that test kernels on the default stream need not wait for one another
    return work();
}
API cuLaunchHostFunc(Handle stream, void (*function)(void*), void* data) {
    CALL_IN_CONTEXT("cuLaunchHostFunc");
    return put(stream, [=] { return function(data), int(OK); });
}

API cuMemAlloc_v2(Address* at, size_t bytes) {
    CALL_IN_CONTEXT("cuMemAlloc");
    if (const int bad = not_while_capturing()) return bad;
    if (!bytes) return INVALID_VALUE;
    if (used + bytes > settings.memory) return OUT_OF_MEMORY;
    void* got = std::aligned_alloc(512, (bytes + 511) / 512 * 512);
    std::memset(got, 0xff, bytes);
    *at = reinterpret_cast<Address>(got);
    used += memory[*at] = bytes;
    return OK;
}
API cuMemFree_v2(Address at) {
    CALL_TO_END("cuMemFree");
    const auto found = memory.find(at);
    if (found == memory.end()) return INVALID_VALUE;
    used -= found->second;
    memory.erase(found);
    std::free(reinterpret_cast<void*>(at));
    return told;
}
API cuMemHostAlloc(void** at, size_t bytes, unsigned flags) {
    CALL_IN_CONTEXT("cuMemHostAlloc");
    if (const int bad = not_while_capturing()) return bad;
    if (!bytes || flags != 2) return INVALID_VALUE; // mapped, and not write-combined
    if (used + bytes > settings.memory) return OUT_OF_MEMORY;
    // The same pages at two addresses, so that one cannot be taken for the other.
    const size_t mapped = (bytes + 65535) / 65536 * 65536;
    const int file = memfd_create("cellgate", 0);
    if (file < 0 || ftruncate(file, mapped)) return OUT_OF_MEMORY;
    void* views[2];
    for (auto& view : views) view = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (views[0] == MAP_FAILED || views[1] == MAP_FAILED) return OUT_OF_MEMORY;
    std::memset(views[0], 0xff, bytes);
    const auto device = reinterpret_cast<Address>(views[1]);
    mappings[views[0]] = {device, bytes, mapped};
    used += memory[device] = bytes;
    return *at = views[0], OK;
}
API cuMemFreeHost(void* at) {
    CALL_TO_END("cuMemFreeHost");
    const auto found = mappings.find(at);
    if (found == mappings.end()) return INVALID_VALUE;
    const Mapping mapping = found->second;
    mappings.erase(found);
    memory.erase(mapping.device);
    used -= mapping.bytes;
    munmap(at, mapping.mapped);
    munmap(reinterpret_cast<void*>(mapping.device), mapping.mapped);
    return told;
}
API cuMemHostGetDevicePointer_v2(Address* device, void* at, unsigned flags) {
    CALL_IN_CONTEXT("cuMemHostGetDevicePointer");
    const auto found = mappings.find(at);
    if (found == mappings.end() || flags) return INVALID_VALUE;
    return *device = found->second.device, OK;
}

API cuMemcpyHtoD_v2(Address to, const void* from, size_t bytes) {
    CALL_IN_CONTEXT("cuMemcpyHtoD");
    if (const int bad = not_while_capturing()) return bad;
    if (!allocated(to, bytes)) return INVALID_VALUE;
    return std::memcpy(reinterpret_cast<void*>(to), from, bytes), OK;
}
API cuMemcpyDtoH_v2(void* to, Address from, size_t bytes) {
    CALL_IN_CONTEXT("cuMemcpyDtoH");
    if (const int bad = not_while_capturing()) return bad;
    if (!allocated(from, bytes)) return INVALID_VALUE;
    return std::memcpy(to, reinterpret_cast<const void*>(from), bytes), OK;
}
// Asynchronous only from and to memory of the driver; with any other a graph could not be launched again.
API cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t bytes, Handle stream) {
    CALL_IN_CONTEXT("cuMemcpyHtoDAsync");
    if (!allocated(to, bytes) || !pinned(from, bytes)) return INVALID_VALUE;
    return put(stream, [=] { return std::memcpy(reinterpret_cast<void*>(to), from, bytes), int(OK); });
}
API cuMemcpyDtoHAsync_v2(void* to, Address from, size_t bytes, Handle stream) {
    CALL_IN_CONTEXT("cuMemcpyDtoHAsync");
    if (!allocated(from, bytes) || !pinned(to, bytes)) return INVALID_VALUE;
    return put(stream, [=] { return std::memcpy(to, reinterpret_cast<const void*>(from), bytes), int(OK); });
}

API cuStreamCreate(Handle* stream, unsigned) {
    CALL_IN_CONTEXT("cuStreamCreate");
    return *stream = make<Stream>("stream"), OK;
}
API cuStreamDestroy_v2(Handle handle) {
    CALL_TO_END("cuStreamDestroy");
    auto* stream = get<Stream>(handle, "stream");
    if (!stream) return INVALID_HANDLE;
    finish(*stream);
    unmake<Stream>(handle, "stream");
    return told;
}
API cuStreamSynchronize(Handle handle) {
    CALL_IN_CONTEXT("cuStreamSynchronize");
    auto* stream = get<Stream>(handle, "stream");
    if (!stream) return INVALID_HANDLE;
    if (stream->capturing) return stream->broken = true, CAPTURE_UNSUPPORTED;
    return finish(*stream);
}
API cuStreamBeginCapture_v2(Handle handle, int) {
    CALL_IN_CONTEXT("cuStreamBeginCapture");
    auto* stream = get<Stream>(handle, "stream");
    if (!stream || stream->capturing) return INVALID_HANDLE;
    stream->capturing = true;
    stream->broken = false;
    stream->captured.clear();
    return OK;
}
API cuStreamEndCapture(Handle handle, Handle* graph) {
    CALL_TO_END("cuStreamEndCapture");
    auto* stream = get<Stream>(handle, "stream");
    if (!stream || !stream->capturing) return INVALID_HANDLE;
    stream->capturing = false;
    *graph = nullptr;
    if (told || stream->broken) return told ? told : int(CAPTURE_INVALIDATED);
    auto* made = make<Graph>("graph");
    made->work.swap(stream->captured);
    return *graph = made, OK;
}
API cuStreamIsCapturing(Handle handle, int* status) {
    CALL_IN_CONTEXT("cuStreamIsCapturing");
    auto* stream = get<Stream>(handle, "stream");
    if (!stream) return INVALID_HANDLE;
    return *status = stream->capturing ? stream->broken ? 2 : 1 : 0, OK;
}

API cuGraphInstantiateWithFlags(Handle* executable, Handle handle, unsigned long long) {
    CALL_IN_CONTEXT("cuGraphInstantiate");
    auto* graph = get<Graph>(handle, "graph");
    if (!graph) return INVALID_HANDLE;
    auto* made = make<Graph>("executable");
    made->work = graph->work;
    return *executable = made, OK;
}
API cuGraphLaunch(Handle executable, Handle stream) {
    CALL_IN_CONTEXT("cuGraphLaunch");
    auto* graph = get<Graph>(executable, "executable");
    if (!graph) return INVALID_HANDLE;
    // It is alive until it is waited for, or those who destroy it too early see it.
    return put(stream, [=] {
        if (!get<Graph>(executable, "executable")) return int(INVALID_HANDLE);
        for (auto& work : graph->work)
            if (const int failed = work()) return failed;
        return int(OK);
    });
}
API cuGraphDestroy(Handle graph) {
    CALL_TO_END("cuGraphDestroy");
    return unmake<Graph>(graph, "graph") ? told : INVALID_HANDLE;
}
API cuGraphExecDestroy(Handle executable) {
    CALL_TO_END("cuGraphExecDestroy");
    return unmake<Graph>(executable, "executable") ? told : INVALID_HANDLE;
}

API cuEventCreate(Handle* event, unsigned) {
    CALL_IN_CONTEXT("cuEventCreate");
    return *event = make<int>("event"), OK;
}
API cuEventDestroy_v2(Handle event) {
    CALL_TO_END("cuEventDestroy");
    return unmake<int>(event, "event") ? told : INVALID_HANDLE;
}
API cuEventRecord(Handle event, Handle) {
    CALL_IN_CONTEXT("cuEventRecord");
    return get<int>(event, "event") ? OK : INVALID_HANDLE;
}
// There is no time here: each step takes a millisecond.
API cuEventElapsedTime(float* milliseconds, Handle, Handle) {
    CALL_IN_CONTEXT("cuEventElapsedTime");
    return *milliseconds = 1.0f, OK;
}
