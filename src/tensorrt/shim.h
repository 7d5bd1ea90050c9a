// TensorRT as plain C: what cellgate needs of it, and no more. Rust's side of it is ffi.rs, which must say the same.
//
// Every function that can fail gives one of `cellgate_trt_status`; `cellgate_trt_reason` then says why, in words. No exception
// leaves a function, and what a failing one has made, it has freed. Objects may move between threads, but are not to be used by
// two at once. An object is freed before the one that it was made from.
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct cellgate_trt_runtime cellgate_trt_runtime;
typedef struct cellgate_trt_engine cellgate_trt_engine;
typedef struct cellgate_trt_context cellgate_trt_context;

enum cellgate_trt_status {
    CELLGATE_TRT_OK = 0,
    CELLGATE_TRT_LIBRARY = 1, // a library cannot be loaded, or lacks what it should have
    CELLGATE_TRT_VERSION = 2, // it is of another major version than the headers
    CELLGATE_TRT_CREATE = 3,  // TensorRT would not make an object
    CELLGATE_TRT_PLAN = 4,    // a plan cannot be read
    CELLGATE_TRT_PARSE = 5,   // an ONNX model cannot be read
    CELLGATE_TRT_BUILD = 6,   // no engine can be made of it
    CELLGATE_TRT_TENSOR = 7,  // there is no such tensor
    CELLGATE_TRT_MEMORY = 8,  // too little working memory was given
    CELLGATE_TRT_ENQUEUE = 9, // a run could not be put on the stream
};

// Severity as nvinfer1::ILogger::Severity: 0 internal error, 1 error, 2 warning, 3 information, 4 verbose. Called from any thread.
typedef void (*cellgate_trt_log)(int32_t severity, char const* text);
// Takes bytes that live for the length of the call.
typedef void (*cellgate_trt_sink)(void* user, void const* bytes, size_t size);

typedef struct {
    int64_t workspace;        // most bytes of working memory for a layer
    int32_t optimisation;     // 0 to 5: how long it looks for the fastest implementation
    void const* timing_cache; // what an earlier build measured on this GPU, or null
    size_t timing_cache_size;
} cellgate_trt_options;

typedef struct {
    char const* name;  // lives as long as the engine
    int32_t is_input;
    int32_t is_linear; // row-major, without padding
    int32_t type;      // nvinfer1::DataType
    int32_t rank;      // 0 to 8
    int64_t size[8];   // −1 is a size that is open
} cellgate_trt_tensor;

// The functions for one major version of TensorRT.
typedef struct {
    // The version of the headers, 10000·major + 100·minor + patch.
    int32_t header_version;

    // Why the last call on this thread failed; empty if it did not. Lives until the next call on this thread.
    char const* (*reason)(void);

    // Loads libnvinfer, from `path` or, if that is null, from where the loader finds it.
    int32_t (*open)(char const* path, cellgate_trt_log log, cellgate_trt_runtime** out);
    // The version of the library that was loaded.
    int32_t (*version)(cellgate_trt_runtime const* runtime);
    void (*close)(cellgate_trt_runtime* runtime);

    // Builds an engine of an ONNX model, in the types that the model is written in. The ONNX parser is loaded from `parser`, or
    // from where the loader finds it. `plan` is called once if all goes well, `timing_cache` then as well, if there is something.
    int32_t (*build)(cellgate_trt_runtime* runtime, char const* parser, void const* onnx, size_t size,
                     cellgate_trt_options const* options, cellgate_trt_sink plan, cellgate_trt_sink timing_cache, void* user);

    int32_t (*deserialise)(cellgate_trt_runtime* runtime, void const* plan, size_t size, cellgate_trt_engine** out);
    int32_t (*tensor_count)(cellgate_trt_engine const* engine);
    int32_t (*describe)(cellgate_trt_engine const* engine, int32_t index, cellgate_trt_tensor* out);
    // Bytes of working memory that a context of this engine needs.
    int64_t (*working_memory)(cellgate_trt_engine const* engine);
    // Layers, their formats and implementations as JSON.
    int32_t (*inspect)(cellgate_trt_engine const* engine, cellgate_trt_sink json, void* user);
    void (*free_engine)(cellgate_trt_engine* engine);

    // `memory` is the caller's, in device memory, and must outlive the context.
    int32_t (*new_context)(cellgate_trt_engine* engine, void* memory, int64_t size, cellgate_trt_context** out);
    int32_t (*bind)(cellgate_trt_context* context, char const* tensor, void* address);
    int32_t (*enqueue)(cellgate_trt_context* context, void* stream);
    void (*free_context)(cellgate_trt_context* context);
} cellgate_trt_api;

// As many of them as the program has shims: shim.cpp is compiled once with the headers of each major version. What one table's
// functions have made goes to that table's alone.
extern cellgate_trt_api const cellgate_trt_10;
extern cellgate_trt_api const cellgate_trt_11;

#ifdef __cplusplus
}
#endif
