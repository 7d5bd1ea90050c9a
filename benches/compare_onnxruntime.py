"""The CPU backbone against onnxruntime, interleaved in one run.

compare_onnxruntime.py BENCH MODEL [--size 256] [--threads 1,2] [--rounds 12] [--runs 20] [--isa NAME]

BENCH is the executable of benches/backbone.rs (`cargo bench --no-run --bench backbone` prints its path); MODEL is what
`cellgate backbone export-onnx --size SIZE -o MODEL` wrote: FP32, the same weights. For each number of threads the two
take turns, A B A B, a batch of runs each, on the same image; printed are the medians of wall and processor time of all
runs, the ratios of the medians (below 1: ours is faster), the median over the rounds of each round's own ratio, and the
largest difference of each map divided by its largest value.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

try:
    import numpy as np
    import onnxruntime
except ImportError as error:
    sys.exit(f"{error}: python3 -m pip install numpy onnxruntime")

CHANNELS, STRIDES = (64, 128, 256, 512), (4, 8, 16, 32)


class Ours:
    """The bench process: fed counts on stdin, answers `wall:cpu` pairs."""

    def __init__(self, args, threads, image_path, output_path):
        command = [args.bench, "--serve", "--threads", str(threads), "--size", str(args.size)]
        command += ["--input", image_path, "--output", output_path]
        if args.isa:
            command += ["--isa", args.isa]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ready = self.process.stdout.readline().split()
        if ready[:1] != ["ready"]:
            sys.exit(f"{args.bench} did not start")
        self.allocations = float(ready[1])

    def measure(self, count):
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return [tuple(map(float, pair.split(":"))) for pair in self.process.stdout.readline().split()]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Theirs:
    """onnxruntime in this process."""

    def __init__(self, args, threads, image):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads that spin between runs would take the core from the other side.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self.session = onnxruntime.InferenceSession(args.model, options, providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]
        given = self.session.get_inputs()[0]
        self.feed = {given.name: image.reshape(given.shape)}
        for _ in range(5):
            self.maps = self.session.run(self.names, self.feed)

    def measure(self, count):
        times = []
        for _ in range(count):
            cpu, wall = time.process_time_ns(), time.perf_counter_ns()
            self.session.run(self.names, self.feed)
            times.append(((time.perf_counter_ns() - wall) / 1e6, (time.process_time_ns() - cpu) / 1e6))
        return times


def differences(output_path, maps, size):
    ours = np.fromfile(output_path, "<f4")
    at = 0
    for channels, stride, theirs in zip(CHANNELS, STRIDES, maps, strict=True):
        side = size // stride
        mine = ours[at : at + side * side * channels].reshape(side, side, channels).transpose(2, 0, 1)
        at += side * side * channels
        yield float(np.abs(mine - theirs[0]).max() / np.abs(theirs).max())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench")
    parser.add_argument("model")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--isa")
    parser.add_argument("--json", action="store_true", help="one JSON line for each number of threads")
    args = parser.parse_args()

    image = np.random.default_rng(1).normal(size=(args.size, args.size)).astype("<f4")
    with tempfile.TemporaryDirectory() as folder:
        image_path, output_path = (str(pathlib.Path(folder, name)) for name in ("image.f32", "maps.f32"))
        image.tofile(image_path)
        for threads in map(int, args.threads.split(",")):
            ours, theirs = Ours(args, threads, image_path, output_path), Theirs(args, threads, image)
            rounds = [(ours.measure(args.runs), theirs.measure(args.runs)) for _ in range(args.rounds)]
            ours.close()
            mine, other = (np.array([t for r in rounds for t in r[side]]) for side in (0, 1))
            (wall, cpu), (wall_ort, cpu_ort) = np.median(mine, axis=0), np.median(other, axis=0)
            by_round = [np.median(np.array(a), axis=0) / np.median(np.array(b), axis=0) for a, b in rounds]
            paired_wall, paired_cpu = np.median(by_round, axis=0)
            worst = list(differences(output_path, theirs.maps, args.size))
            result = {
                "size": args.size, "threads": threads, "onnxruntime": onnxruntime.__version__,
                "wall_ms": wall, "cpu_ms": cpu, "ort_wall_ms": wall_ort, "ort_cpu_ms": cpu_ort,
                "ratio_wall": wall / wall_ort, "ratio_cpu": cpu / cpu_ort,
                "paired_ratio_wall": paired_wall, "paired_ratio_cpu": paired_cpu,
                "relative_differences": worst, "allocations_per_run": ours.allocations,
            }  # fmt: skip
            if args.json:
                print(json.dumps(result))
                continue
            print(
                f"{args.size}×{args.size}, {threads} thread(s), {len(mine)} runs each\n"
                f"  cellgate          {wall:7.2f} ms wall {cpu:7.2f} ms cpu, {ours.allocations:g} allocations a run\n"
                f"  onnxruntime {onnxruntime.__version__:6}{wall_ort:7.2f} ms wall {cpu_ort:7.2f} ms cpu\n"
                f"  ratio of medians  {wall / wall_ort:7.3f}    wall {cpu / cpu_ort:7.3f}    cpu"
                f" (median of the rounds' ratios {paired_wall:.3f} wall, {paired_cpu:.3f} cpu)\n"
                f"  largest relative difference by stage: {', '.join(f'{d:.1e}' for d in worst)}"
            )


if __name__ == "__main__":
    main()
