// See shim.h. TensorRT itself is loaded when it is wanted, so that the program starts where there is none.
//
// Compiled against TensorRT's headers, once for each major version that the program is for. Both then have the same classes with
// different tables of functions, and the linker would keep one of two inline functions of the same name. So each gets its own names.
#include <NvInferVersion.h>

#define OWN_NAME(name, major) name##_##major
#define OWN(name, major) OWN_NAME(name, major)
#define nvinfer1 OWN(nvinfer1, NV_TENSORRT_MAJOR)
#define nvonnxparser OWN(nvonnxparser, NV_TENSORRT_MAJOR)
#define cellgate_trt_runtime OWN(cellgate_trt_runtime, NV_TENSORRT_MAJOR)
#define cellgate_trt_engine OWN(cellgate_trt_engine, NV_TENSORRT_MAJOR)
#define cellgate_trt_context OWN(cellgate_trt_context, NV_TENSORRT_MAJOR)

#include "shim.h"

#include <NvInfer.h>
#include <NvOnnxParser.h>
#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>

#if NV_TENSORRT_MAJOR < 10 || (NV_TENSORRT_MAJOR == 10 && NV_TENSORRT_MINOR < 3)
#error "cellgate needs the headers of TensorRT 10.3 (JetPack 6.1) or later: see TENSORRT_INCLUDE in docs/tensorrt.md"
#endif

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)
#define LIBRARY(name) "lib" name ".so." TEXT(NV_TENSORRT_MAJOR)

using namespace nvinfer1;

namespace {

constexpr int32_t VERSION = 10000 * NV_TENSORRT_MAJOR + 100 * NV_TENSORRT_MINOR + NV_TENSORRT_PATCH;
// Headers of a later minor version describe an earlier library as well, as far as it has what is called: the tables of functions grow
// at their end. All that is called here is in 10.3 (its last addition is setDeviceMemoryV2, of 10.1) and in 11.0.
constexpr int32_t OLDEST = NV_TENSORRT_MAJOR == 10 ? 100300 : 10000 * NV_TENSORRT_MAJOR;

thread_local char reason[1024]; // of the last call's failure
thread_local char logged[768];  // the last error that TensorRT logged on this thread

// TensorRT keeps the first logger that it is given for the whole process, so there is one, and it is never destroyed.
struct Log final : ILogger {
    std::atomic<cellgate_trt_log> sink{nullptr};

    void log(Severity severity, AsciiChar const* text) noexcept override {
        if (!text) return;
        if (severity <= Severity::kERROR) snprintf(logged, sizeof logged, "%s", text);
        if (auto to = sink.load()) to(static_cast<int32_t>(severity), text);
    }
};

Log& the_log() noexcept {
    alignas(Log) static unsigned char memory[sizeof(Log)];
    static Log* const log = new (memory) Log;
    return *log;
}

void begin() noexcept { reason[0] = logged[0] = 0; }

// Remembers what failed, with the error that TensorRT logged meanwhile or what else is known.
int32_t failed(cellgate_trt_status status, char const* what, char const* why = nullptr) noexcept {
    if (!why || !*why) why = logged;
    snprintf(reason, sizeof reason, *why ? "%s: %s" : "%s%s", what, why);
    return status;
}

template <typename F>
F function(void* library, char const* name) noexcept {
    return reinterpret_cast<F>(dlsym(library, name));
}

// What one of TensorRT's three entries gave. After an error it may be no object at all: where there is no CUDA driver, that of 11.4
// logs so and gives a small number, which nobody may follow.
template <typename T>
std::unique_ptr<T> made(void* object) noexcept {
    return std::unique_ptr<T>(logged[0] ? nullptr : static_cast<T*>(object));
}

struct Unload {
    void operator()(void* library) const noexcept { dlclose(library); }
};
using Library = std::unique_ptr<void, Unload>;

Library load(char const* path, char const* usual) noexcept { return Library(dlopen(path ? path : usual, RTLD_NOW | RTLD_LOCAL)); }

} // namespace

struct cellgate_trt_runtime {
    void* library;
    int32_t version;
    int32_t spoken; // the version that its objects are made and used by: not above the library's, nor the headers'
    std::unique_ptr<IRuntime> runtime;
};

struct cellgate_trt_engine {
    std::unique_ptr<ICudaEngine> engine;
};

struct cellgate_trt_context {
    std::unique_ptr<IExecutionContext> context;
};

namespace {

int32_t build_engine(cellgate_trt_runtime& runtime, char const* parser_path, void const* onnx, size_t size,
                     cellgate_trt_options const& options, cellgate_trt_sink plan, cellgate_trt_sink timing_cache,
                     void* user) noexcept {
    auto new_builder = function<void* (*)(void*, int32_t)>(runtime.library, "createInferBuilder_INTERNAL");
    if (!new_builder) return failed(CELLGATE_TRT_LIBRARY, "TensorRT's library cannot build engines");
    Library parser_library = load(parser_path, LIBRARY("nvonnxparser"));
    if (!parser_library) return failed(CELLGATE_TRT_LIBRARY, "the ONNX parser cannot be loaded", dlerror());
    auto new_parser = function<void* (*)(void*, void*, int)>(parser_library.get(), "createNvOnnxParser_INTERNAL");
    if (!new_parser) return failed(CELLGATE_TRT_LIBRARY, "the library given is not TensorRT's ONNX parser");

    auto builder = made<IBuilder>(new_builder(&the_log(), runtime.spoken));
    if (!builder) return failed(CELLGATE_TRT_CREATE, "createInferBuilder gave nothing");
#if NV_TENSORRT_MAJOR == 10
    // What the ONNX says is what is computed in; from 11 on there is nothing else.
    uint32_t const flags = 1U << static_cast<uint32_t>(NetworkDefinitionCreationFlag::kSTRONGLY_TYPED);
#else
    uint32_t const flags = 0;
#endif
    std::unique_ptr<INetworkDefinition> network(builder->createNetworkV2(flags));
    if (!network) return failed(CELLGATE_TRT_CREATE, "createNetworkV2 gave nothing");
    auto parser = made<nvonnxparser::IParser>(new_parser(network.get(), &the_log(), NV_ONNX_PARSER_VERSION));
    if (!parser) return failed(CELLGATE_TRT_CREATE, "createNvOnnxParser gave nothing");
    if (!parser->parse(onnx, size)) {
        auto const* error = parser->getNbErrors() > 0 ? parser->getError(0) : nullptr;
        return failed(CELLGATE_TRT_PARSE, "the ONNX model was refused", error ? error->desc() : nullptr);
    }

    std::unique_ptr<IBuilderConfig> config(builder->createBuilderConfig());
    if (!config) return failed(CELLGATE_TRT_CREATE, "createBuilderConfig gave nothing");
    config->setMemoryPoolLimit(MemoryPoolType::kWORKSPACE, static_cast<size_t>(options.workspace));
    config->setBuilderOptimizationLevel(options.optimisation);
    config->setProfilingVerbosity(ProfilingVerbosity::kDETAILED); // so that the engine can be shown
    config->setMaxAuxStreams(0); // all of it on the caller's stream, with the memory of one layer at a time
    // Another GPU's measurements are refused; then it measures anew.
    std::unique_ptr<ITimingCache> cache(config->createTimingCache(options.timing_cache, options.timing_cache_size));
    if (!cache && options.timing_cache_size > 0) cache.reset(config->createTimingCache(nullptr, 0));
    if (!cache) return failed(CELLGATE_TRT_CREATE, "createTimingCache gave nothing");
    if (!config->setTimingCache(*cache, false)) {
        cache.reset(config->createTimingCache(nullptr, 0));
        if (!cache || !config->setTimingCache(*cache, false)) return failed(CELLGATE_TRT_CREATE, "setTimingCache failed");
    }
    std::unique_ptr<IHostMemory> built(builder->buildSerializedNetwork(*network, *config));
    if (!built || !built->data() || built->size() == 0) return failed(CELLGATE_TRT_BUILD, "buildSerializedNetwork gave nothing");
    plan(user, built->data(), built->size());
    if (ITimingCache const* measured = config->getTimingCache()) {
        std::unique_ptr<IHostMemory> bytes(measured->serialize());
        if (bytes && bytes->data() && bytes->size() > 0) timing_cache(user, bytes->data(), bytes->size());
    }
    return CELLGATE_TRT_OK;
}

char const* why() { return reason; }

int32_t open(char const* path, cellgate_trt_log log, cellgate_trt_runtime** out) {
    begin();
    *out = nullptr;
    the_log().sink = log;
    Library library = load(path, LIBRARY("nvinfer"));
    if (!library) return failed(CELLGATE_TRT_LIBRARY, "it cannot be loaded", dlerror());
    auto version_of = function<int32_t (*)()>(library.get(), "getInferLibVersion");
    auto create = function<void* (*)(void*, int32_t)>(library.get(), "createInferRuntime_INTERNAL");
    if (!version_of || !create) return failed(CELLGATE_TRT_LIBRARY, "it is not TensorRT's library");
    // 8503 is 8.5.3, but 100300 is 10.3.0. The tables of virtual functions grow at their end within a major version, and
    // change from one to the next: nothing may be called then.
    int32_t const version = version_of(), major = version / (version < 100000 ? 1000 : 10000);
    if (major != NV_TENSORRT_MAJOR || version < OLDEST) {
        int32_t const minor = version / 100 % (version < 100000 ? 10 : 100);
        char text[160];
        snprintf(text, sizeof text, "it is of version %d.%d, but this program was built for %d.x from %d.%d on", major, minor,
                 NV_TENSORRT_MAJOR, NV_TENSORRT_MAJOR, OLDEST / 100 % 100);
        return failed(CELLGATE_TRT_VERSION, text);
    }
    int32_t const spoken = std::min(version, VERSION);
    auto runtime = made<IRuntime>(create(&the_log(), spoken));
    if (!runtime) return failed(CELLGATE_TRT_CREATE, "createInferRuntime failed");
    *out = new (std::nothrow) cellgate_trt_runtime{library.get(), version, spoken, std::move(runtime)};
    if (!*out) return failed(CELLGATE_TRT_CREATE, "out of memory");
    // It stays loaded until the process ends: TensorRT and the CUDA runtime in it have threads and exit handlers of their own.
    (void)library.release();
    return CELLGATE_TRT_OK;
}

int32_t version(cellgate_trt_runtime const* runtime) { return runtime->version; }

void close(cellgate_trt_runtime* runtime) { delete runtime; }

int32_t build(cellgate_trt_runtime* runtime, char const* parser, void const* onnx, size_t size,
                           cellgate_trt_options const* options, cellgate_trt_sink plan, cellgate_trt_sink timing_cache,
                           void* user) {
    begin();
    return build_engine(*runtime, parser, onnx, size, *options, plan, timing_cache, user);
}

int32_t deserialise(cellgate_trt_runtime* runtime, void const* plan, size_t size, cellgate_trt_engine** out) {
    begin();
    *out = nullptr;
    std::unique_ptr<ICudaEngine> engine(runtime->runtime->deserializeCudaEngine(plan, size));
    if (!engine) return failed(CELLGATE_TRT_PLAN, "deserializeCudaEngine gave nothing");
    *out = new (std::nothrow) cellgate_trt_engine{std::move(engine)};
    return *out ? CELLGATE_TRT_OK : failed(CELLGATE_TRT_CREATE, "out of memory");
}

int32_t tensor_count(cellgate_trt_engine const* engine) { return engine->engine->getNbIOTensors(); }

int32_t describe(cellgate_trt_engine const* engine, int32_t index, cellgate_trt_tensor* out) {
    begin();
    ICudaEngine const& of = *engine->engine;
    *out = cellgate_trt_tensor{};
    out->name = of.getIOTensorName(index);
    if (!out->name) return failed(CELLGATE_TRT_TENSOR, "getIOTensorName gave nothing");
    out->is_input = of.getTensorIOMode(out->name) == TensorIOMode::kINPUT;
    out->is_linear = of.getTensorFormat(out->name) == TensorFormat::kLINEAR;
    out->type = static_cast<int32_t>(of.getTensorDataType(out->name));
    Dims const shape = of.getTensorShape(out->name);
    if (shape.nbDims < 0 || shape.nbDims > 8) return failed(CELLGATE_TRT_TENSOR, "getTensorShape gave nothing");
    out->rank = shape.nbDims;
    for (int32_t i = 0; i < shape.nbDims; ++i) out->size[i] = shape.d[i];
    return CELLGATE_TRT_OK;
}

int64_t working_memory(cellgate_trt_engine const* engine) { return engine->engine->getDeviceMemorySizeV2(); }

int32_t inspect(cellgate_trt_engine const* engine, cellgate_trt_sink json, void* user) {
    begin();
    std::unique_ptr<IEngineInspector> inspector(engine->engine->createEngineInspector());
    if (!inspector) return failed(CELLGATE_TRT_CREATE, "createEngineInspector gave nothing");
    char const* text = inspector->getEngineInformation(LayerInformationFormat::kJSON);
    if (!text) return failed(CELLGATE_TRT_CREATE, "getEngineInformation gave nothing");
    json(user, text, strlen(text));
    return CELLGATE_TRT_OK;
}

void free_engine(cellgate_trt_engine* engine) { delete engine; }

int32_t new_context(cellgate_trt_engine* engine, void* memory, int64_t size, cellgate_trt_context** out) {
    begin();
    *out = nullptr;
    int64_t const needed = engine->engine->getDeviceMemorySizeV2();
    if (needed < 0 || size < needed || (needed > 0 && !memory)) {
        char text[128];
        snprintf(text, sizeof text, "%lld bytes of working memory were given, %lld are needed", static_cast<long long>(size),
                 static_cast<long long>(needed));
        return failed(CELLGATE_TRT_MEMORY, text);
    }
    std::unique_ptr<IExecutionContext> context(
        engine->engine->createExecutionContext(ExecutionContextAllocationStrategy::kUSER_MANAGED));
    if (!context) return failed(CELLGATE_TRT_CREATE, "createExecutionContext gave nothing");
    logged[0] = 0;
    context->setDeviceMemoryV2(memory, size);
    if (logged[0]) return failed(CELLGATE_TRT_MEMORY, "setDeviceMemoryV2 failed"); // it returns nothing
    *out = new (std::nothrow) cellgate_trt_context{std::move(context)};
    return *out ? CELLGATE_TRT_OK : failed(CELLGATE_TRT_CREATE, "out of memory");
}

int32_t bind(cellgate_trt_context* context, char const* tensor, void* address) {
    begin();
    return context->context->setTensorAddress(tensor, address) ? CELLGATE_TRT_OK
                                                               : failed(CELLGATE_TRT_TENSOR, "setTensorAddress failed");
}

int32_t enqueue(cellgate_trt_context* context, void* stream) {
    begin();
    return context->context->enqueueV3(static_cast<cudaStream_t>(stream)) ? CELLGATE_TRT_OK
                                                                          : failed(CELLGATE_TRT_ENQUEUE, "enqueueV3 failed");
}

void free_context(cellgate_trt_context* context) { delete context; }

} // namespace

cellgate_trt_api const OWN(cellgate_trt, NV_TENSORRT_MAJOR) = {
    VERSION,  why,     open,           version,     close,       build, deserialise, tensor_count,
    describe, working_memory, inspect, free_engine, new_context, bind,  enqueue,     free_context,
};
