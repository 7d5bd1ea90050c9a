"""OpenVINO's CPU plugin: latency hint, one stream, FP32. `ONEDNN_MAX_CPU_ISA` in the environment holds it to a set."""

import openvino


def load(model, image, threads, options):
    core = openvino.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads),
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = core.compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(image, shared_memory=True))
    outputs = [request.get_output_tensor(index) for index in range(len(compiled.outputs))]

    def run(_keep=image):  # the tensor only points at the image
        request.infer()
        return [output.data for output in outputs]

    version = openvino.__version__.split("-")[0]
    return run, f"OpenVINO {version}, latency hint, one stream, f32"
