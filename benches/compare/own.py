"""What has no peer: bandwidth, scaling, preemption, allocations, the model file, the build."""

import contextlib
import os
import pathlib
import re
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
    """Share of the read bandwidth that embedding, distance and heatmap reach, by number of threads."""
    return parse_distance(subprocess.run([bench], check=True, stdout=subprocess.PIPE, text=True).stdout)


def parse_distance(text):
    """Reads what `benches/distance.rs` prints: lines of key=value, or the table whose lines start with a number of
    threads, the columns named above them."""
    shares = {}
    for line in text.splitlines():
        pairs = dict(re.findall(r"(\w+)=([\d.]+)", line))
        if "threads" in pairs and "share" in pairs:
            shares[int(pairs["threads"])] = float(pairs["share"])
    if shares:
        return shares
    for line in text.splitlines():
        numbers = line.split()
        if numbers and numbers[0].isdigit() and len(numbers) >= 7:
            threads, project, distance, _, heatmap, read = numbers[:6]
            shares[int(threads)] = float(read) / (float(project) + float(distance) + float(heatmap))
    return shares


def build_time(repository):
    """Seconds of a release build from nothing, in a folder of its own."""
    with tempfile.TemporaryDirectory(dir=pathlib.Path(repository, "target")) as folder:
        clock = time.perf_counter()
        command = ["cargo", "build", "--release", "--locked", "--target-dir", folder]
        subprocess.run(command, check=True, cwd=repository, stdout=sys.stderr)
        return time.perf_counter() - clock
