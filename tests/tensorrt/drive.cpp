// The shim on the doubles without Rust, so that it can be built with sanitisers and for other processors.
//
// drive DOUBLE.so MODEL.onnx: the whole way, with every call failing in turn; ends with 0 if each failure was told, none leaked and
// a run without one gave the right numbers.
#include "../../src/tensorrt/shim.h"
#include "fake.hpp"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

namespace {

#define MUST(condition)                                                                                                 \
    do {                                                                                                                \
        if (!(condition)) {                                                                                             \
            std::fprintf(stderr, "line %d: %s does not hold (%s)\n", __LINE__, #condition, cellgate_trt_reason());       \
            std::exit(1);                                                                                               \
        }                                                                                                               \
    } while (0)

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

template <typename T, void (*FREE)(T*)>
struct Free {
    void operator()(T* object) const { FREE(object); }
};
template <typename T, void (*FREE)(T*)>
using Owned = std::unique_ptr<T, Free<T, FREE>>;

// The way from the library to a run: whether it was gone to its end.
bool whole_way(char const* library, std::string const& onnx) {
    cellgate_trt_runtime* opened = nullptr;
    if (cellgate_trt_open(library, log, &opened) != CELLGATE_TRT_OK) return false;
    Owned<cellgate_trt_runtime, cellgate_trt_close> runtime(opened);
    cellgate_trt_options const options{1 << 20, 3, nullptr, 0};
    std::string plan;
    if (cellgate_trt_build(opened, library, onnx.data(), onnx.size(), &options, take, drop, &plan) != CELLGATE_TRT_OK) return false;

    cellgate_trt_engine* read = nullptr;
    MUST(cellgate_trt_deserialise(opened, plan.data(), plan.size() / 2, &read) != CELLGATE_TRT_OK && !read);
    if (cellgate_trt_deserialise(opened, plan.data(), plan.size(), &read) != CELLGATE_TRT_OK) return false;
    Owned<cellgate_trt_engine, cellgate_trt_free_engine> engine(read);
    std::string layers;
    if (cellgate_trt_inspect(read, take, &layers) != CELLGATE_TRT_OK) return false;
    std::vector<std::string> names;
    for (int32_t i = 0; i < cellgate_trt_tensor_count(read); ++i) {
        cellgate_trt_tensor tensor;
        if (cellgate_trt_describe(read, i, &tensor) != CELLGATE_TRT_OK) return false;
        names.emplace_back(tensor.name);
    }

    std::vector<char> memory(static_cast<size_t>(cellgate_trt_working_memory(read)));
    cellgate_trt_context* made = nullptr;
    MUST(cellgate_trt_new_context(read, memory.data(), 1, &made) == CELLGATE_TRT_MEMORY && !made);
    if (cellgate_trt_new_context(read, memory.data(), static_cast<int64_t>(memory.size()), &made) != CELLGATE_TRT_OK) return false;
    Owned<cellgate_trt_context, cellgate_trt_free_context> context(made);
    MUST(cellgate_trt_bind(made, "nothing", memory.data()) == CELLGATE_TRT_TENSOR);
    MUST(cellgate_trt_enqueue(made, nullptr) == CELLGATE_TRT_ENQUEUE); // nothing is bound
    std::vector<uint16_t> image(64 * 64, 0x3c00), logits(3), probabilities(3);
    void* const places[] = {image.data(), logits.data(), probabilities.data()};
    for (size_t i = 0; i < names.size(); ++i)
        if (cellgate_trt_bind(made, names[i].c_str(), places[i]) != CELLGATE_TRT_OK) return false;
    if (cellgate_trt_enqueue(made, nullptr) != CELLGATE_TRT_OK) return false;
    MUST(probabilities[2] == 0x3c00 && logits[0] == 0x3c00);
    return true;
}

} // namespace

int main(int count, char** words) {
    MUST(count == 3);
    char const* library = words[1];
    std::ifstream file(words[2], std::ios::binary);
    std::string const onnx{std::istreambuf_iterator<char>(file), {}};
    auto fail = control<void (*)(int32_t)>(library, "cellgate_fake_trt_fail");
    auto calls = control<int32_t (*)()>(library, "cellgate_fake_trt_calls");
    auto live = control<int32_t (*)()>(library, "cellgate_fake_trt_live");
    control<void (*)(cellgate_fake_trt_network, void*)>(library, "cellgate_fake_trt_compute")(compute, nullptr);

    MUST(!whole_way("/nowhere/libnvinfer.so", onnx) && std::strlen(cellgate_trt_reason()) > 0);
    fail(0);
    MUST(whole_way(library, onnx) && live() == 0);
    int32_t const all = calls();
    for (int32_t n = 1; n <= all; ++n) {
        fail(n);
        bool const whole = whole_way(library, onnx);
        // What was refused on purpose, and a timing cache, may fail unnoticed.
        MUST(whole || std::strlen(cellgate_trt_reason()) > 0);
        MUST(live() == 0);
    }
    std::printf("%d calls failed in turn\n", all);
    return 0;
}
