// CUDA kernels on a host, for tests: one fibre per CUDA thread, one block after the other. Fibres change only at barriers
// and shuffles, in an order that the launch chooses: where a barrier is missing, the result depends on it. In the first order
// all threads go from barrier to barrier together; in the others one warp goes as far as it can before the next one does.
//
// What is read before it is written is not a number: dynamic shared memory starts as such, and so does the target of an
// asynchronous copy, which takes place only when it is waited for. Behind the shared memory nothing can be read.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <sys/mman.h>

struct uint3 {
    unsigned x, y, z;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

namespace host {

extern "C" void cellgate_switch_fibre(void** save, void* load);
#if defined(__x86_64__)
asm(R"(.text
.weak cellgate_switch_fibre
.type cellgate_switch_fibre,@function
cellgate_switch_fibre:
 pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
 movq %rsp,(%rdi); movq %rsi,%rsp
 popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
 ret
)");
#elif defined(__aarch64__)
asm(R"(.text
.weak cellgate_switch_fibre
.type cellgate_switch_fibre,%function
cellgate_switch_fibre:
 sub sp,sp,#160
 stp x19,x20,[sp]; stp x21,x22,[sp,#16]; stp x23,x24,[sp,#32]; stp x25,x26,[sp,#48]; stp x27,x28,[sp,#64]; stp x29,x30,[sp,#80]
 stp d8,d9,[sp,#96]; stp d10,d11,[sp,#112]; stp d12,d13,[sp,#128]; stp d14,d15,[sp,#144]
 mov x9,sp; str x9,[x0]; mov sp,x1
 ldp x19,x20,[sp]; ldp x21,x22,[sp,#16]; ldp x23,x24,[sp,#32]; ldp x25,x26,[sp,#48]; ldp x27,x28,[sp,#64]; ldp x29,x30,[sp,#80]
 ldp d8,d9,[sp,#96]; ldp d10,d11,[sp,#112]; ldp d12,d13,[sp,#128]; ldp d14,d15,[sp,#144]
 add sp,sp,#160
 ret
)");
#else
#error "fibres are written for x86-64 and aarch64"
#endif

constexpr size_t STACK = 64 << 10;

enum class State { Running, AtBlockBarrier, AtWarpBarrier, Done };

struct Copy {
    void* to;
    const void* from;
};

struct Fibre {
    uint3 index;
    unsigned number;
    void* stack_pointer;
    State state;
    uint64_t published; // what a shuffle gives to the other lanes
    unsigned mask;
    std::vector<Copy> copies;
    std::unique_ptr<char[]> stack;
};

struct Launch {
    uint3 grid, block;
    size_t shared_bytes;
    unsigned order; // 0 ascending and together, 1 descending, else a shuffle with this seed
};

// Memory whose last byte is followed by a page that may not be touched.
class Shared {
    unsigned char* pages = nullptr;
    size_t mapped = 0, used = 0;
    static constexpr size_t PAGE = 64 << 10; // a multiple of every page size in use

public:
    Shared() = default;
    Shared(const Shared&) = delete;
    ~Shared() { give_back(); }
    void give_back() {
        if (pages) munmap(pages, mapped);
        pages = nullptr;
    }
    void resize(size_t bytes) {
        used = (bytes + 127) / 128 * 128;
        const size_t wanted = (used + PAGE - 1) / PAGE * PAGE + PAGE;
        if (pages && wanted == mapped) return;
        give_back();
        mapped = wanted;
        void* got = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (got == MAP_FAILED) throw std::runtime_error("no memory");
        pages = static_cast<unsigned char*>(got);
        mprotect(pages + mapped - PAGE, PAGE, PROT_NONE);
    }
    unsigned char* start() { return pages + mapped - PAGE - used; }
    void poison() { std::memset(start(), 0xff, used); }
};

inline thread_local Fibre* current;
inline thread_local void* scheduler;
inline thread_local uint3 block_index;
inline thread_local Launch launched;
inline thread_local std::vector<Fibre> fibres;
inline thread_local Shared shared_memory;
inline thread_local std::function<void()> body;
inline thread_local std::string fault;

[[noreturn]] inline void fail(const std::string& what) { throw std::runtime_error(what); }

inline void give_way(State state) {
    current->state = state;
    cellgate_switch_fibre(&current->stack_pointer, scheduler);
}

inline void run_fibre() {
    try {
        body();
        if (!current->copies.empty()) fail("a thread ended with copies on their way");
    } catch (const std::exception& error) {
        fault = error.what();
    }
    current->copies.clear();
    give_way(State::Done);
    std::abort();
}

inline void prepare(Fibre& fibre) {
    const auto top = reinterpret_cast<uintptr_t>(fibre.stack.get() + STACK) & ~static_cast<uintptr_t>(63);
#if defined(__x86_64__)
    void** pointer = reinterpret_cast<void**>(top);
    *--pointer = nullptr; // where the entry would return to; keeps the alignment of a call
    *--pointer = reinterpret_cast<void*>(run_fibre);
    for (int i = 0; i < 6; ++i) *--pointer = nullptr;
    fibre.stack_pointer = pointer;
#else
    void** pointer = reinterpret_cast<void**>(top - 160);
    std::memset(pointer, 0, 160);
    pointer[11] = reinterpret_cast<void*>(run_fibre);
    fibre.stack_pointer = pointer;
#endif
}

// Lets warps go on whose lanes have all come to the same barrier, among the fibres from `begin` to `end`.
inline bool release_warps(unsigned begin, unsigned end) {
    bool moved = false;
    const unsigned threads = fibres.size();
    for (unsigned i = begin; i < end; ++i) {
        if (fibres[i].state != State::AtWarpBarrier) continue;
        const unsigned mask = fibres[i].mask, first = i & ~31u;
        bool complete = mask >> (i & 31) & 1;
        for (unsigned lane = 0; lane < 32; ++lane) {
            if (!(mask >> lane & 1)) continue;
            const unsigned other = first + lane;
            complete &= other < threads && fibres[other].state == State::AtWarpBarrier && fibres[other].mask == mask;
        }
        if (!complete) continue;
        for (unsigned lane = 0; lane < 32; ++lane)
            if (mask >> lane & 1) fibres[first + lane].state = State::Running;
        moved = true;
    }
    return moved;
}

inline void run_block(const std::vector<unsigned>& order) {
    shared_memory.poison();
    for (auto& fibre : fibres) {
        fibre.state = State::Running;
        fibre.copies.clear();
        prepare(fibre);
    }
    const auto go_on = [](unsigned i) {
        if (fibres[i].state != State::Running) return false;
        current = &fibres[i];
        cellgate_switch_fibre(&scheduler, current->stack_pointer);
        if (!fault.empty()) fail(fault);
        return true;
    };
    const unsigned threads = fibres.size();
    for (;;) {
        bool ran = false;
        for (unsigned i : order) {
            if (!launched.order) {
                ran |= go_on(i);
                continue;
            }
            // The whole warp, until it waits for others or is done.
            const unsigned begin = i & ~31u, end = std::min(begin + 32, threads);
            for (bool more = true; more;) {
                more = false;
                for (unsigned other : order)
                    if (other >= begin && other < end) more |= go_on(other);
                more |= release_warps(begin, end);
                ran |= more;
            }
        }
        size_t done = 0, waiting = 0;
        for (const auto& fibre : fibres) {
            done += fibre.state == State::Done;
            waiting += fibre.state == State::AtBlockBarrier;
        }
        if (done == fibres.size()) return;
        if (waiting == fibres.size()) {
            for (auto& fibre : fibres) fibre.state = State::Running;
        } else if (!release_warps(0, threads) && !ran) {
            fail("deadlock: a barrier that not all threads come to, or a shuffle with a lane that is elsewhere");
        }
    }
}

// Runs a kernel; throws what went wrong.
template <class Body>
void run(const Launch& launch, Body kernel) {
    const unsigned threads = launch.block.x * launch.block.y * launch.block.z;
    if (!threads || threads > 1024 || !launch.grid.x || !launch.grid.y || !launch.grid.z) fail("a launch of an impossible shape");
    launched = launch;
    body = kernel;
    fault.clear();
    shared_memory.resize(launch.shared_bytes);
    if (fibres.size() > threads) fibres.resize(threads);
    while (fibres.size() < threads) {
        fibres.emplace_back();
        fibres.back().stack.reset(new char[STACK]);
    }
    std::vector<unsigned> order(threads);
    for (unsigned i = 0; i < threads; ++i) {
        const uint3 size = launch.block;
        fibres[i].number = i;
        fibres[i].index = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
        order[i] = launch.order == 1 ? threads - 1 - i : i;
    }
    if (launch.order > 1) {
        uint64_t state = launch.order;
        for (unsigned i = threads; i-- > 1;) {
            state = state * 6364136223846793005ull + 1442695040888963407ull;
            std::swap(order[i], order[(state >> 33) % (i + 1)]);
        }
    }
    for (block_index.z = 0; block_index.z < launch.grid.z; ++block_index.z)
        for (block_index.y = 0; block_index.y < launch.grid.y; ++block_index.y)
            for (block_index.x = 0; block_index.x < launch.grid.x; ++block_index.x) run_block(order);
}

inline unsigned char* shared_start() { return shared_memory.start(); }

// Publishes, waits for the others, reads, and waits until they have read.
inline uint64_t exchange(unsigned mask, uint64_t value, unsigned from) {
    current->published = value;
    current->mask = mask;
    const unsigned first = current->number & ~31u;
    give_way(State::AtWarpBarrier);
    if (!(mask >> (from & 31) & 1)) fail("a shuffle from a lane that its mask leaves out");
    const uint64_t other = fibres[first + (from & 31)].published;
    current->mask = mask;
    give_way(State::AtWarpBarrier);
    return other;
}

template <class T>
T shuffle(unsigned mask, T value, unsigned from) {
    static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves up to 8 bytes");
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    bits = exchange(mask, bits, from);
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline uint16_t to_half(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint32_t sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return 0x7fff; // CUDA's one NaN
    if (bits >= 0x477ff000) return sign | 0x7c00;
    if (bits < 0x33000001) return sign;
    int exponent = static_cast<int>(bits >> 23) - 112, shift = 13;
    uint32_t mantissa = (bits & 0x7fffff) | 0x800000;
    if (exponent <= 0) {
        shift += 1 - exponent;
        exponent = 0;
    } else {
        mantissa &= 0x7fffff;
    }
    const uint32_t rest = mantissa & ((1u << shift) - 1), half = 1u << (shift - 1);
    uint32_t rounded = mantissa >> shift;
    rounded += rest > half || (rest == half && (rounded & 1));
    return sign | static_cast<uint16_t>((exponent << 10) + rounded);
}

inline float from_half(uint16_t half) {
    const uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, mantissa = half & 1023;
    uint32_t bits;
    if (exponent == 31) {
        bits = sign | 0x7f800000 | mantissa << 13;
    } else if (exponent) {
        bits = sign | (exponent + 112) << 23 | mantissa << 13;
    } else {
        const float value = std::ldexp(static_cast<float>(mantissa), -24);
        std::memcpy(&bits, &value, 4);
        bits |= sign;
    }
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

} // namespace host

#define threadIdx (::host::current->index)
#define blockIdx (::host::block_index)
#define blockDim (::host::launched.block)
#define gridDim (::host::launched.grid)
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __shared__ static thread_local
#define DYNAMIC_SHARED(name) unsigned char* name = ::host::shared_start()

struct __half {
    uint16_t bits;
};
inline float __half2float(__half x) { return host::from_half(x.bits); }
inline __half __float2half_rn(float x) { return {host::to_half(x)}; }
inline __half __ushort_as_half(uint16_t x) { return {x}; }

inline void __syncthreads() { host::give_way(host::State::AtBlockBarrier); }
inline void __syncwarp(unsigned mask = ~0u) {
    host::current->mask = mask;
    host::give_way(host::State::AtWarpBarrier);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int step) {
    return host::shuffle(mask, value, (host::current->number & 31) ^ step);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned step) {
    const unsigned lane = host::current->number & 31;
    return host::shuffle(mask, value, lane >= step ? lane - step : lane);
}

// Fibres change at no other place: what a thread does between two barriers is atomic.
template <class T>
T atomicAdd(T* at, T value) {
    const T old = *at;
    *at += value;
    return old;
}
template <class T>
T atomicMin(T* at, T value) {
    const T old = *at;
    *at = std::min(old, value);
    return old;
}
template <class T>
T atomicMax(T* at, T value) {
    const T old = *at;
    *at = std::max(old, value);
    return old;
}

inline uint32_t __float_as_uint(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
inline float __uint_as_float(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

inline void copy_async16(void* shared, const void* global) {
    const auto* to = static_cast<unsigned char*>(shared);
    const unsigned char* start = host::shared_start();
    if (to < start || to + 16 > start + host::launched.shared_bytes) host::fail("a copy past the end of the shared memory");
    if ((reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global)) % 16) host::fail("a copy that is not aligned to 16 bytes");
    std::memset(shared, 0xff, 16);
    host::current->copies.push_back({shared, global});
}
inline void copies_arrived() {
    for (const auto& copy : host::current->copies) std::memcpy(copy.to, copy.from, 16);
    host::current->copies.clear();
}

using std::max;
using std::min;
