"""The fit from PNG files on disk: images a second and peak memory, each fit in a process of its own."""

import json
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent


def links(cells, folder, count):
    """A folder of `count` images: hard links to the cells there are, again and again."""
    folder.mkdir()
    originals = sorted(cells.glob("*.png"))
    for index in range(count):
        os.link(originals[index % len(originals)], folder / f"cell{index:06}.png")
    return folder


def child(command, threads):
    """Runs a command on `threads` cores; returns what it printed and its peak memory in MB."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {process.returncode}")
    return printed, usage.ru_maxrss * 1.024e-3


def ours(cellgate, images, model, threads, count):
    """The whole command: it also sets the threshold, on cells that it holds out (at least ten must be usable)."""
    command = [cellgate, "fit", images, "-o", model, "--json", "--threads", threads, "--preprocess", "none"]
    command += ["--size", 256, "--grid", 64, "-k", 100, "--stages", "1,2,3"]
    command += ["--holdout", max(0.1, min(0.4, 25 / count))]
    printed, peak = child(command, threads)
    said = json.loads(printed.strip().splitlines()[-1])
    # All were read and went through the network; those held out then went on to heatmap and score.
    return {"images": count, "fitted": said["images"], "seconds": said["seconds"], "peak_mb": peak}


def theirs(peer, images, threads):
    command = [sys.executable, "-W", "ignore", HERE / "fit_peer.py", peer, images, "--threads", threads]
    printed, peak = child(command, threads)
    return json.loads(printed.strip().splitlines()[-1]) | {"peak_mb": peak}


def compare(cellgate, cells, work, counts, threads, peers=("anomalib", "anomavision")):
    """One line for each fit. `counts`: the small number of images shows whether memory grows."""
    results = []
    for count in counts:
        images = links(cells, work / f"images{count}", count)
        # Memory needs one number of threads only.
        for number in threads if count == max(counts) else threads[-1:]:
            for name in ("ours", *peers):
                model = work / f"ours{count}-{number}.cgm"
                result = (
                    ours(cellgate, images, model, number, count) if name == "ours" else theirs(name, images, number)
                )
                result |= {
                    "side": name,
                    "threads": number,
                    "files": count,
                    "rate": result["images"] / result["seconds"],
                }
                print(f"  fit {name}: {result['rate']:.1f} images/s, {result['peak_mb']:.0f} MB", file=sys.stderr)
                results.append(result)
    return results
