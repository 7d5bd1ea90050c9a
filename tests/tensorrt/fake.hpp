// What a test says to the doubles of TensorRT (fake.cpp), by `dlsym`.
#pragma once
#include <cstddef>
#include <cstdint>

extern "C" {
// Computes a network: `network` is the FNV-1a hash of its ONNX, `tensors` where its inputs and then its outputs lie, in the
// ONNX's order.
typedef void (*cellgate_fake_trt_network)(void* user, uint64_t network, void* const* tensors, size_t count);

// Who computes the networks of all engines; without one a run fails.
void cellgate_fake_trt_compute(cellgate_fake_trt_network compute, void* user);
// The version that the library says it has; 0 for that of the headers. Or the variable CELLGATE_FAKE_TRT_VERSION.
void cellgate_fake_trt_version(int32_t version);
// Lets the n-th call from now on fail, 0 for none, and counts anew. Or the variable CELLGATE_FAKE_TRT_FAIL.
void cellgate_fake_trt_fail(int32_t n);
// Calls that can fail since then.
int32_t cellgate_fake_trt_calls(void);
// Objects that are alive.
int32_t cellgate_fake_trt_live(void);
// Builds that were given a timing cache with something in it.
int32_t cellgate_fake_trt_warm_builds(void);
}
