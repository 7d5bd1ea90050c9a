// Test doubles of libnvinfer and libnvonnxparser in one library, behind TensorRT's own headers (stubs.h is made of them by
// stubs.py). Nothing is optimised and no GPU is used: an engine is a text that names the tensors of an ONNX model, and a run calls
// what the test has registered, as a host function of the stream where the process has a CUDA driver (a double of it), else at once.
#include "fake.hpp"
#include "onnx.hpp"
#include "stubs.h"

#include <dlfcn.h>

#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <sstream>
#include <utility>

using namespace nvinfer1;

namespace {

std::atomic<int32_t> live{0}, calls{0}, fail_at{-1}, warm_builds{0}, said_version{0};
cellgate_fake_trt_network compute = nullptr;
void* compute_user = nullptr;
ILogger* logger = nullptr;

constexpr int64_t WORKING_MEMORY = 3000;
constexpr char MEASURED[] = "measured on the fake GPU";

void say(ILogger::Severity severity, std::string const& text) {
    if (logger) logger->log(severity, text.c_str());
}

int32_t variable(char const* name) {
    char const* text = std::getenv(name);
    return text ? std::atoi(text) : 0;
}

// Every call that can fail goes through here, so that each can be made to.
bool may(char const* call) {
    if (fail_at < 0) fail_at = variable("CELLGATE_FAKE_TRT_FAIL");
    if (++calls != fail_at) return true;
    say(ILogger::Severity::kERROR, std::string("injected failure of ") + call);
    return false;
}

struct Counted {
    Counted() { ++live; }
    Counted(Counted const&) = delete;
    Counted& operator=(Counted const&) = delete;
    ~Counted() { --live; }
};

// An object that callers see, with its table of functions.
template <typename Interface, typename Table>
struct Object final : Interface, Counted {
    Table table;
    template <typename... Arguments>
    explicit Object(Arguments&&... arguments) : table(std::forward<Arguments>(arguments)...) {
        this->mImpl = &table;
    }
    ~Object() noexcept override = default;
};

uint64_t fnv(std::string_view bytes) {
    uint64_t hash = 0xcbf29ce484222325;
    for (char c : bytes) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3;
    return hash;
}

// A network and, as text, an engine's plan.
struct Network {
    uint64_t hash = 0;
    onnx::Model model;

    std::string plan() const {
        std::ostringstream out;
        out << "fake TensorRT plan " << NV_TENSORRT_MAJOR << ' ' << hash << '\n';
        for (auto const* tensors : {&model.inputs, &model.outputs}) {
            out << tensors->size() << '\n';
            for (auto const& tensor : *tensors) {
                out << tensor.name << ' ' << tensor.type << ' ' << tensor.shape.size();
                for (int64_t size : tensor.shape) out << ' ' << size;
                out << '\n';
            }
        }
        out << model.nodes.size() << '\n';
        for (auto const& node : model.nodes) out << node.name << ' ' << node.kind << '\n';
        out << "end\n";
        return out.str();
    }

    static bool read(std::string const& plan, Network& to) {
        std::istringstream in(plan);
        std::string fake, tensorrt, word, end;
        int major = 0;
        in >> fake >> tensorrt >> word >> major >> to.hash;
        if (fake != "fake" || tensorrt != "TensorRT" || word != "plan" || major != NV_TENSORRT_MAJOR) return false;
        for (auto* tensors : {&to.model.inputs, &to.model.outputs}) {
            size_t count = 0;
            if (!(in >> count) || count > 64) return false;
            tensors->resize(count);
            for (auto& tensor : *tensors) {
                size_t rank = 0;
                if (!(in >> tensor.name >> tensor.type >> rank) || rank > 8) return false;
                tensor.shape.resize(rank);
                for (int64_t& size : tensor.shape) in >> size;
            }
        }
        size_t count = 0;
        if (!(in >> count) || count > 1000) return false;
        to.model.nodes.resize(count);
        for (auto& node : to.model.nodes) in >> node.name >> node.kind;
        in >> end;
        return end == "end";
    }

    size_t size() const { return model.inputs.size() + model.outputs.size(); }
    onnx::Tensor const* at(size_t i) const {
        size_t const inputs = model.inputs.size();
        return i < inputs ? &model.inputs[i] : i < size() ? &model.outputs[i - inputs] : nullptr;
    }
    int find(char const* name) const {
        for (size_t i = 0; i < size(); ++i)
            if (at(i)->name == name) return static_cast<int>(i);
        return -1;
    }
};

// One run: what is computed where. It lives as long as its context, since a graph may repeat it.
struct Run {
    uint64_t network;
    std::vector<void*> tensors;
    void* memory;

    static void now(void* run) {
        auto const& of = *static_cast<Run const*>(run);
        std::memset(of.memory, 0xa5, WORKING_MEMORY); // it is the caller's, and must be there
        compute(compute_user, of.network, of.tensors.data(), of.tensors.size());
    }
};

struct ContextTable final : apiv::StubVExecutionContext {
    Network network;
    std::vector<void*> bound;
    void* memory = nullptr;
    std::map<std::vector<void*>, std::unique_ptr<Run>> runs;

    explicit ContextTable(Network const& of) : network(of), bound(of.size(), nullptr) {}
    IExecutionContext* getPImpl() noexcept override { return nullptr; }

    void setDeviceMemoryV2(void* to, int64_t size) noexcept override {
        if (!may("setDeviceMemoryV2")) return;
        if (!to || size < WORKING_MEMORY) return say(ILogger::Severity::kERROR, "too little device memory");
        memory = to;
    }

    bool setTensorAddress(char const* name, void* address) noexcept override {
        int const at = network.find(name);
        if (!may("setTensorAddress") || at < 0) return false;
        bound[static_cast<size_t>(at)] = address;
        return true;
    }

    bool enqueueV3(cudaStream_t stream) noexcept override {
        if (!may("enqueueV3")) return false;
        bool whole = memory && compute;
        for (void* address : bound) whole = whole && address;
        if (!whole) {
            say(ILogger::Severity::kERROR, compute ? "a tensor has no address" : "no test computes this network");
            return false;
        }
        auto& run = runs[bound];
        if (!run) run = std::make_unique<Run>(Run{network.hash, bound, memory});
        using Launch = int (*)(cudaStream_t, void (*)(void*), void*);
        if (auto launch = reinterpret_cast<Launch>(dlsym(RTLD_DEFAULT, "cuLaunchHostFunc"))) {
            if (launch(stream, &Run::now, run.get()) == 0) return true;
            say(ILogger::Severity::kERROR, "cuLaunchHostFunc failed");
            return false;
        }
        Run::now(run.get());
        return true;
    }
};

struct InspectorTable final : apiv::StubVEngineInspector {
    std::string json;

    explicit InspectorTable(Network const& network) {
        json = "{\"Layers\": [";
        char const* before = "";
        for (auto const& node : network.model.nodes) {
            json += before + ("{\"Name\": \"" + node.name) + "\", \"LayerType\": \"" + node.kind +
                    "\", \"Outputs\": [{\"Name\": \"" + node.name + "\", \"Format/Datatype\": \"Half\"}], \"TacticName\": \"fake\"}";
            before = ", ";
        }
        json += "], \"Bindings\": []}";
    }
    IEngineInspector* getPImpl() noexcept override { return nullptr; }
    char const* getEngineInformation(LayerInformationFormat format) const noexcept override {
        return may("getEngineInformation") && format == LayerInformationFormat::kJSON ? json.c_str() : nullptr;
    }
};

struct EngineTable final : apiv::StubVCudaEngine {
    Network network;

    explicit EngineTable(Network const& of) : network(of) {}
    ICudaEngine* getPImpl() noexcept override { return nullptr; }
    int32_t getNbIOTensors() const noexcept override { return static_cast<int32_t>(network.size()); }
    char const* getIOTensorName(int32_t i) const noexcept override {
        auto const* tensor = network.at(static_cast<size_t>(i));
        return may("getIOTensorName") && tensor ? tensor->name.c_str() : nullptr;
    }
    TensorIOMode getTensorIOMode(char const* name) const noexcept override {
        bool const input = network.find(name) < static_cast<int>(network.model.inputs.size());
        return input ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
    }
    TensorFormat getTensorFormat(char const*) const noexcept override { return TensorFormat::kLINEAR; }
    DataType getTensorDataType(char const* name) const noexcept override {
        return tensor(name).type == 10 ? DataType::kHALF : DataType::kFLOAT;
    }
    Dims getTensorShape(char const* name) const noexcept override {
        Dims shape{};
        shape.nbDims = -1;
        if (!may("getTensorShape")) return shape;
        shape.nbDims = 0;
        for (int64_t size : tensor(name).shape) shape.d[shape.nbDims++] = size;
        return shape;
    }
    int64_t getDeviceMemorySizeV2() const noexcept override { return WORKING_MEMORY; }
    IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy strategy) noexcept override {
        if (!may("createExecutionContext") || strategy != ExecutionContextAllocationStrategy::kUSER_MANAGED) return nullptr;
        return new Object<IExecutionContext, ContextTable>(network);
    }
    IEngineInspector* createEngineInspector() const noexcept override {
        return may("createEngineInspector") ? new Object<IEngineInspector, InspectorTable>(network) : nullptr;
    }

  private:
    onnx::Tensor const& tensor(char const* name) const { return *network.at(static_cast<size_t>(network.find(name))); }
};

struct RuntimeTable final : apiv::StubVRuntime {
    IRuntime* getPImpl() noexcept override { return nullptr; }
    ICudaEngine* deserializeCudaEngine(void const* plan, size_t size) noexcept override {
        Network network;
        if (!may("deserializeCudaEngine")) return nullptr;
        if (!Network::read(std::string(static_cast<char const*>(plan), size), network)) {
            say(ILogger::Severity::kERROR, "the plan is damaged");
            return nullptr;
        }
        return new Object<ICudaEngine, EngineTable>(network);
    }
};

struct MemoryTable final : apiv::StubVHostMemory {
    std::string bytes;

    explicit MemoryTable(std::string of) : bytes(std::move(of)) {}
    void* data() const noexcept override { return const_cast<char*>(bytes.data()); }
    size_t size() const noexcept override { return bytes.size(); }
};
using Memory = Object<IHostMemory, MemoryTable>;

struct TimingTable final : apiv::StubVTimingCache {
    bool warm = false;
    IHostMemory* serialize() const noexcept override { return may("serialize") ? new Memory(MEASURED) : nullptr; }
};
using Timing = Object<ITimingCache, TimingTable>;

struct ConfigTable final : apiv::StubVBuilderConfig {
    ITimingCache const* timing = nullptr;

    void setMemoryPoolLimit(MemoryPoolType, size_t) noexcept override {}
    void setBuilderOptimizationLevel(int32_t) noexcept override {}
    void setProfilingVerbosity(ProfilingVerbosity) noexcept override {}
    // Gives nothing in some versions of the headers, whether it worked in others.
    using Worked = decltype(std::declval<IBuilderConfig&>().setMaxAuxStreams(0));
    Worked setMaxAuxStreams(int32_t) noexcept override { return static_cast<Worked>(1); }
    ITimingCache* createTimingCache(void const* blob, size_t size) const noexcept override {
        bool const known = size == sizeof MEASURED - 1 && std::memcmp(blob, MEASURED, size) == 0;
        if (!may("createTimingCache") || (size > 0 && !known)) return nullptr;
        auto* cache = new Timing;
        cache->table.warm = known;
        return cache;
    }
    bool setTimingCache(ITimingCache const& cache, bool) noexcept override {
        if (!may("setTimingCache")) return false;
        timing = &cache;
        return true;
    }
    ITimingCache const* getTimingCache() const noexcept override { return timing; }
};
using Config = Object<IBuilderConfig, ConfigTable>;

struct NetworkTable final : apiv::StubVNetworkDefinition {
    Network network;
};
using Definition = Object<INetworkDefinition, NetworkTable>;

struct BuilderTable final : apiv::StubVBuilder {
    IBuilderConfig* createBuilderConfig() noexcept override { return may("createBuilderConfig") ? new Config : nullptr; }
    INetworkDefinition* createNetworkV2(NetworkDefinitionCreationFlags flags) noexcept override {
#if NV_TENSORRT_MAJOR == 10
        uint32_t const wanted = 1U << static_cast<uint32_t>(NetworkDefinitionCreationFlag::kSTRONGLY_TYPED);
#else
        uint32_t const wanted = 0;
#endif
        return may("createNetworkV2") && flags == wanted ? new Definition : nullptr;
    }
    IHostMemory* buildSerializedNetwork(INetworkDefinition& network, IBuilderConfig& config) noexcept override {
        if (!may("buildSerializedNetwork")) return nullptr;
        auto const* timing = static_cast<Timing const*>(static_cast<Config&>(config).table.timing);
        warm_builds += timing && timing->table.warm;
        return new Memory(static_cast<Definition&>(network).table.network.plan());
    }
};

struct ParseError final : nvonnxparser::StubIParserError {
    char const* desc() const override { return "the bytes are no ONNX model"; }
};

struct Parser final : nvonnxparser::StubIParser, Counted {
    Definition& to;
    ParseError error;
    bool failed = false;

    explicit Parser(Definition& of) : to(of) {}
    bool parse(void const* bytes, size_t size, char const*) noexcept override {
        std::string_view const onnx(static_cast<char const*>(bytes), size);
        Network& network = to.table.network;
        network.hash = fnv(onnx);
        if (!may("parse")) return false;
        failed = !onnx::read(onnx, network.model);
        return !failed;
    }
    int getNbErrors() const noexcept override { return failed; }
    nvonnxparser::IParserError const* getError(int) const noexcept override { return &error; }
};

} // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED void cellgate_fake_trt_compute(cellgate_fake_trt_network with, void* user) { compute = with, compute_user = user; }
EXPORTED void cellgate_fake_trt_version(int32_t version) { said_version = version; }
EXPORTED void cellgate_fake_trt_fail(int32_t n) { calls = 0, fail_at = n; }
EXPORTED int32_t cellgate_fake_trt_calls(void) { return calls; }
EXPORTED int32_t cellgate_fake_trt_live(void) { return live; }
EXPORTED int32_t cellgate_fake_trt_warm_builds(void) { return warm_builds; }

EXPORTED int32_t getInferLibVersion() noexcept {
    if (said_version == 0) said_version = variable("CELLGATE_FAKE_TRT_VERSION");
    constexpr int32_t HEADERS = 10000 * NV_TENSORRT_MAJOR + 100 * NV_TENSORRT_MINOR + NV_TENSORRT_PATCH;
    return said_version ? said_version.load() : HEADERS;
}
// Nobody may ask for more than a library is. Whether TensorRT minds is not known; the double does.
static bool known(int32_t version) { return version <= getInferLibVersion(); }
EXPORTED void* createInferRuntime_INTERNAL(void* log, int32_t version) noexcept {
    if (!known(version)) return nullptr;
    logger = static_cast<ILogger*>(log);
    // As TensorRT 11.4 does without a driver.
    if (!may("createInferRuntime")) return reinterpret_cast<void*>(552);
    say(ILogger::Severity::kINFO, "a test double of TensorRT");
    return static_cast<IRuntime*>(new Object<IRuntime, RuntimeTable>);
}
EXPORTED void* createInferBuilder_INTERNAL(void*, int32_t version) noexcept {
    if (!known(version)) return nullptr;
    if (!may("createInferBuilder")) return reinterpret_cast<void*>(552);
    return static_cast<IBuilder*>(new Object<IBuilder, BuilderTable>);
}
EXPORTED void* createNvOnnxParser_INTERNAL(void* network, void*, int) noexcept {
    if (!may("createNvOnnxParser")) return nullptr;
    return static_cast<nvonnxparser::IParser*>(new Parser(static_cast<Definition&>(*static_cast<INetworkDefinition*>(network))));
}
