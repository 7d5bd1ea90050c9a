// The shim on the doubles without Rust, so that it can be built with sanitisers and for other processors.
//
// drive MODEL.onnx DOUBLE.so…: the whole way, with every call failing in turn; ends with 0 if each failure was told, none leaked and
// a run without one gave the right numbers. There are as many shims in this program as doubles: each takes one and refuses the others.
#include "../../src/tensorrt/shim.h"
#include "fake.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#pragma weak cellgate_trt_10
#pragma weak cellgate_trt_11

namespace {

#define MUST(condition)                                                                                                 \
    do {                                                                                                                \
        if (!(condition)) {                                                                                             \
            std::fprintf(stderr, "line %d: %s does not hold (%s)\n", __LINE__, #condition, api->reason());       \
            std::exit(1);                                                                                               \
        }                                                                                                               \
    } while (0)

cellgate_trt_api const* api; // the one that is driven

template <typename F>
F control(char const* path, char const* name) {
    void* library = dlopen(path, RTLD_NOW);
    MUST(library);
    auto found = reinterpret_cast<F>(dlsym(library, name));
    MUST(found);
    return found;
}

void log(int32_t, char const*) {}

void take(void* to, void const* bytes, size_t size) { static_cast<std::string*>(to)->assign(static_cast<char const*>(bytes), size); }
void drop(void*, void const*, size_t) {}

void compute(void*, uint64_t, void* const* tensors, size_t count) {
    MUST(count == 3); // image, logits, probabilities
    for (size_t i = 1; i < count; ++i) std::memcpy(tensors[i], tensors[0], 6);
}

template <typename T>
using Owned = std::unique_ptr<T, void (*)(T*)>;

// The way from the library to a run: whether it was gone to its end.
bool whole_way(char const* library, std::string const& onnx) {
    cellgate_trt_runtime* opened = nullptr;
    if (api->open(library, log, &opened) != CELLGATE_TRT_OK) return false;
    Owned<cellgate_trt_runtime> runtime(opened, api->close);
    cellgate_trt_options const options{1 << 20, 3, nullptr, 0};
    std::string plan;
    if (api->build(opened, library, onnx.data(), onnx.size(), &options, take, drop, &plan) != CELLGATE_TRT_OK) return false;

    cellgate_trt_engine* read = nullptr;
    MUST(api->deserialise(opened, plan.data(), plan.size() / 2, &read) != CELLGATE_TRT_OK && !read);
    if (api->deserialise(opened, plan.data(), plan.size(), &read) != CELLGATE_TRT_OK) return false;
    Owned<cellgate_trt_engine> engine(read, api->free_engine);
    std::string layers;
    if (api->inspect(read, take, &layers) != CELLGATE_TRT_OK) return false;
    std::vector<std::string> names;
    for (int32_t i = 0; i < api->tensor_count(read); ++i) {
        cellgate_trt_tensor tensor;
        if (api->describe(read, i, &tensor) != CELLGATE_TRT_OK) return false;
        names.emplace_back(tensor.name);
    }

    std::vector<char> memory(static_cast<size_t>(api->working_memory(read)));
    cellgate_trt_context* made = nullptr;
    MUST(api->new_context(read, memory.data(), 1, &made) == CELLGATE_TRT_MEMORY && !made);
    if (api->new_context(read, memory.data(), static_cast<int64_t>(memory.size()), &made) != CELLGATE_TRT_OK) return false;
    Owned<cellgate_trt_context> context(made, api->free_context);
    MUST(api->bind(made, "nothing", memory.data()) == CELLGATE_TRT_TENSOR);
    MUST(api->enqueue(made, nullptr) == CELLGATE_TRT_ENQUEUE); // nothing is bound
    std::vector<uint16_t> image(64 * 64, 0x3c00), logits(3), probabilities(3);
    void* const places[] = {image.data(), logits.data(), probabilities.data()};
    for (size_t i = 0; i < names.size(); ++i)
        if (api->bind(made, names[i].c_str(), places[i]) != CELLGATE_TRT_OK) return false;
    if (api->enqueue(made, nullptr) != CELLGATE_TRT_OK) return false;
    MUST(probabilities[2] == 0x3c00 && logits[0] == 0x3c00);
    return true;
}

} // namespace

int main(int count, char** words) {
    std::vector<cellgate_trt_api const*> apis{&cellgate_trt_10, &cellgate_trt_11};
    apis.erase(std::remove(apis.begin(), apis.end(), nullptr), apis.end());
    api = apis.at(0);
    MUST(count == 2 + static_cast<int>(apis.size()));
    std::ifstream file(words[1], std::ios::binary);
    std::string const onnx{std::istreambuf_iterator<char>(file), {}};
    MUST(!whole_way("/nowhere/libnvinfer.so", onnx) && std::strlen(api->reason()) > 0);
    int32_t driven = 0;
    for (int word = 2; word < count; ++word) {
        char const* library = words[word];
        auto fail = control<void (*)(int32_t)>(library, "cellgate_fake_trt_fail");
        auto calls = control<int32_t (*)()>(library, "cellgate_fake_trt_calls");
        auto live = control<int32_t (*)()>(library, "cellgate_fake_trt_live");
        control<void (*)(cellgate_fake_trt_network, void*)>(library, "cellgate_fake_trt_compute")(compute, nullptr);
        for (cellgate_trt_api const* each : apis) {
            api = each;
            fail(0);
            cellgate_trt_runtime* opened = nullptr;
            if (api->open(library, log, &opened) == CELLGATE_TRT_VERSION) {
                MUST(calls() == 0); // nothing of another version may be called
                continue;
            }
            MUST(opened && api->version(opened) / 10000 == api->header_version / 10000);
            api->close(opened);
            fail(0);
            MUST(whole_way(library, onnx) && live() == 0);
            int32_t const all = calls();
            for (int32_t n = 1; n <= all; ++n) {
                fail(n);
                bool const whole = whole_way(library, onnx);
                // What was refused on purpose, and a timing cache, may fail unnoticed.
                MUST(whole || std::strlen(api->reason()) > 0);
                MUST(live() == 0);
            }
            std::printf("TensorRT %d: %d calls failed in turn\n", api->header_version / 10000, all);
            ++driven;
        }
    }
    MUST(driven == static_cast<int32_t>(apis.size()));
    return 0;
}
