"""From the normalised image tensor to heatmap and score: ours against anomalib and anomavision."""

import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

from turns import Side, take_turns

HERE = pathlib.Path(__file__).parent


def build_peers(folder):
    """The peers' models, by side."""
    # In processes of their own: torch in this one would count as the peak memory of every child that it starts.
    for peer in ("anomalib", "anomavision"):
        program = f"import peer_{peer}; peer_{peer}.build({str(folder)!r})"
        environment = os.environ | {"PYTHONPATH": str(HERE)}
        subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, stdout=sys.stderr, env=environment)
    return {
        "anomalib-openvino": ("anomalib", next(folder.rglob("*.xml"))),
        "anomalib-torch": ("anomalib", folder / "anomalib.pt"),
        "anomavision": ("anomavision", folder / "anomavision.pt"),
    }


def compare(bench, model, cell, peers, threads, rounds, runs, from_file=False):
    """Times by side and the facts each states; `from_file` has each read, decode and resize the cell's PNG as well."""
    image = np.random.default_rng(1).normal(size=(256, 256)).astype("<f4")
    with tempfile.TemporaryDirectory() as folder:
        image_path = pathlib.Path(folder, "image.f32")
        image.tofile(image_path)
        ours = [bench, "--serve", "--model", model, "--image", cell, "--threads", threads]
        started = [Side("ours", [*ours, "--from-file"] if from_file else ours)]
        for name, (peer, path) in peers.items():
            # The one takes a file, the other a folder, of which it reads one.
            options = [f"file={cell}", f"folder={cell.parent}"] if from_file else []
            command = [sys.executable, "-W", "ignore", HERE / "serve.py", peer, path, "--threads", threads]
            command += [part for option in options for part in ("--option", option)]
            started.append(Side(name, [*command, "--input", image_path]))
        facts = {side.name: side.facts for side in started}
        return take_turns(started, rounds, runs), facts
