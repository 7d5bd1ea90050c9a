"""Check an ONNX export: onnx.checker in full, then onnxruntime against expected outputs.

check_onnx.py MODEL INPUT TOLERANCE EXPECTED...

INPUT is the image as raw little-endian f32, plane after plane, row by row; one image after the other, where the model takes
several. EXPECTED are the outputs, all of a network's stages, its projected maps with or without the stages behind them, or a
classifier's logits and probabilities, as raw little-endian f32; stages and maps channels last (pixels * channels), as the
model's own maps are.
TOLERANCE bounds, for each output, the largest difference divided by its largest absolute value. Prints one line an
output; exits with 1 if any is beyond the tolerance. Needs numpy, onnx and onnxruntime.
"""

import sys

import numpy as np
import onnx
import onnxruntime


def main():
    model_path, input_path, tolerance, *expected_paths = sys.argv[1:]
    onnx.checker.check_model(onnx.load(model_path), full_check=True)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model_path, options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    dtype = {"tensor(float)": np.float32, "tensor(float16)": np.float16}[given.type]
    image = np.fromfile(input_path, "<f4").reshape(given.shape).astype(dtype)
    names = [output.name for output in session.get_outputs()]
    stages = ["stage1", "stage2", "stage3", "stage4"]
    last = [f"{stage}_nhwc" for stage in stages]
    maps = [name for name in ("map1", "map2", "map3", "map4") if name in names]
    assert names in (stages, ["logits", "probabilities"], maps, maps + last), names

    failed = False
    for name, got, path in zip(names, session.run(names, {given.name: image}), expected_paths, strict=True):
        assert got.dtype == dtype, (name, got.dtype)
        batch, *shape = got.shape
        assert batch == given.shape[0], got.shape
        expected = np.fromfile(path, "<f4")
        if name in maps + last:
            expected = expected.reshape(got.shape)
        else:
            channels, *pixels = shape
            expected = np.moveaxis(expected.reshape(batch, *pixels, channels), -1, 1)
        error = np.abs(got.astype(np.float64) - expected).max() / np.abs(expected).max()
        print(f"{name}: {dtype.__name__} {got.shape}, relative error {error:.2e}")
        failed |= not error <= float(tolerance)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
