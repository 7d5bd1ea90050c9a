"""ncnn, from the same ONNX file through pnnx.

`--option preset=fp32` turns every reduced precision off and keeps Winograd; `preset=gemm` is that without Winograd.
"""

import ncnn


def load(model, image, threads, options):
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    # What ncnn's own benchmark does: buffers come from pools, not from malloc at every layer.
    pools = ncnn.UnlockedPoolAllocator(), ncnn.PoolAllocator()
    net.opt.blob_allocator, net.opt.workspace_allocator = pools
    preset = options.get("preset", "default")
    if preset != "default":
        net.opt.use_winograd_convolution = preset == "fp32"
        net.opt.use_sgemm_convolution = True
        net.opt.use_packing_layout = True
        net.opt.use_fp16_packed = False
        net.opt.use_fp16_storage = False
        net.opt.use_fp16_arithmetic = False
        net.opt.use_bf16_storage = False
    if net.load_param(f"{model}.param") or net.load_model(f"{model}.bin"):
        raise RuntimeError(f"ncnn does not load {model}")
    given = ncnn.Mat(image[0])
    names = sorted(net.output_names())

    def run(_keep=pools):
        extractor = net.create_extractor()
        extractor.input("in0", given)
        return [extractor.extract(name)[1].numpy() for name in names]

    return run, f"ncnn {ncnn.__version__}, {preset} options"
