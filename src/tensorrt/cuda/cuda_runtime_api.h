// What TensorRT's headers need of the CUDA runtime: the names of its handles, which are the driver's. For machines without a
// CUDA toolkit; where there is one on the include path, its header is found first.
#pragma once
typedef struct CUstream_st* cudaStream_t;
typedef struct CUevent_st* cudaEvent_t;
