"""What has no peer: bandwidth, scaling, preemption, allocations, the model file, the build."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

from turns import Side, take_turns


def by_threads(bench, size, rounds, runs, hog=False):
    """Ours with one thread and with two, in turns; with `hog`, beside a program that wants one core for itself."""
    with tempfile.TemporaryDirectory() as folder, spinning() if hog else contextlib.nullcontext():
        image_path = pathlib.Path(folder, "image.f32")
        np.random.default_rng(1).normal(size=(size, size)).astype("<f4").tofile(image_path)
        command = [bench, "--serve", "--size", size, "--input", image_path, "--threads"]
        return take_turns([Side("one", [*command, 1]), Side("two", [*command, 2])], rounds, runs)


@contextlib.contextmanager
def spinning():
    """A process that never rests, on the first core that this one may use."""
    core = min(os.sched_getaffinity(0))
    process = subprocess.Popen(
        [sys.executable, "-c", "while True: pass"],
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def bandwidth(bench):
    """Lines of `benches/distance.rs`: times, and the share of the read bandwidth that is reached, for each number of
    threads and each embedding."""
    printed = subprocess.run([bench, "--json"], check=True, stdout=subprocess.PIPE, text=True).stdout
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]


def build_time(repository):
    """Seconds of a release build from nothing, in a folder of its own."""
    with tempfile.TemporaryDirectory(dir=pathlib.Path(repository, "target")) as folder:
        clock = time.perf_counter()
        command = ["cargo", "build", "--release", "--locked", "--target-dir", folder]
        subprocess.run(command, check=True, cwd=repository, stdout=sys.stderr)
        return time.perf_counter() - clock
