"""The network alone: ours against onnxruntime, OpenVINO and ncnn, on the same weights and the same image."""

import pathlib
import subprocess
import sys
import tempfile

import numpy as np

from turns import Side, take_turns

HERE = pathlib.Path(__file__).parent
CHANNELS, STRIDES = (64, 128, 256, 512), (4, 8, 16, 32)
# Largest difference of a map over its largest value: what all FP32 sides stay below, and a wrong one does not.
TOLERANCE = 1e-3


def export(cellgate, size, folder):
    """The embedded backbone as an ONNX file, and beside it as an ncnn pair; returns the path without extension."""
    import pnnx

    stem = pathlib.Path(folder, f"net{size}")
    subprocess.run(
        [cellgate, "backbone", "export-onnx", "--size", str(size), "-o", f"{stem}.onnx"], check=True, stdout=sys.stderr
    )
    converter = pathlib.Path(pnnx.EXEC_PATH)
    shape = f"inputshape=[1,1,{size},{size}]"
    subprocess.run([converter, f"{stem}.onnx", shape, "fp16=0"], check=True, cwd=folder, capture_output=True)
    return stem


def sides(bench, stem, size, threads, image_path, folder, wanted):
    """Starts the wanted sides; returns them with the files their maps went to."""
    python, onnx = sys.executable, f"{stem}.onnx"
    common = ["--threads", threads, "--input", image_path]
    shape = ["--shape", f"1,1,{size},{size}"]

    def peer(name, model, *options, environment=None):
        command = [python, HERE / "serve.py", name, model, *common, *shape]
        return command + [part for option in options for part in ("--option", option)], environment

    ours = [bench, "--serve", "--size", size, *common]
    known = {
        "ours": (ours, None),
        "ours-avx2": (ours, {"CELLGATE_ISA": "avx2"}),
        "onnxruntime": peer("onnxruntime", onnx),
        "openvino": peer("openvino", onnx),
        "openvino-avx2": peer("openvino", onnx, environment={"ONEDNN_MAX_CPU_ISA": "AVX2"}),
        "ncnn": peer("ncnn", f"{stem}.ncnn"),
        "ncnn-fp32": peer("ncnn", f"{stem}.ncnn", "preset=fp32"),
        "ncnn-gemm": peer("ncnn", f"{stem}.ncnn", "preset=gemm"),
    }
    started, outputs = [], {}
    for name in wanted:
        command, environment = known[name]
        outputs[name] = pathlib.Path(folder, f"{name}.f32")
        started.append(Side(name, [*command, "--output", outputs[name]], environment))
    return started, outputs


def maps(path, size, channels_last):
    """The four maps of a file as (channels, height, width)."""
    numbers, at = np.fromfile(path, "<f4"), 0
    for channels, stride in zip(CHANNELS, STRIDES, strict=True):
        side = size // stride
        block = numbers[at : at + side * side * channels]
        at += block.size
        yield (
            block.reshape(side, side, channels).transpose(2, 0, 1)
            if channels_last
            else block.reshape(channels, side, side)
        )
    if at != numbers.size:
        raise RuntimeError(f"{path.name}: {numbers.size} numbers where {at} were due")


def difference(ours, theirs, size):
    pairs = zip(maps(ours, size, True), maps(theirs, size, False), strict=True)
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def compare(bench, stem, size, threads, rounds, runs, wanted):
    """Times by side, the facts each side states, and its largest relative difference from ours."""
    image = np.random.default_rng(1).normal(size=(size, size)).astype("<f4")
    with tempfile.TemporaryDirectory() as folder:
        image_path = pathlib.Path(folder, "image.f32")
        image.tofile(image_path)
        started, outputs = sides(bench, stem, size, threads, image_path, folder, wanted)
        facts = {side.name: side.facts for side in started}
        times = take_turns(started, rounds, runs)
        off = {
            name: difference(outputs["ours"], path, size)
            for name, path in outputs.items()
            if not name.startswith("ours")
        }
    return times, facts, off
