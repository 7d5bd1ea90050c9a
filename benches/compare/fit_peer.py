"""A peer's fit over a folder of PNGs: fit_peer.py anomalib|anomavision FOLDER --threads N. Prints one JSON line.

Each peer reads, transforms and fits with its own code; the loop around it is plain, without Lightning, whose overhead
would only add. The clock starts when model and file list are ready and stops when the statistics are.
"""

import argparse
import json
import os
import pathlib
import sys
import time

BATCH = 32  # anomalib's default


def anomalib(folder, workers):
    import torch

    import peer_anomalib

    model = peer_anomalib.padim().model
    paths = sorted(pathlib.Path(folder).glob("*.png"))
    # Images are resized in the loader and not after it, so that worker processes, where there are any, share that too.
    loader = torch.utils.data.DataLoader(
        paths, batch_size=BATCH, num_workers=workers, collate_fn=peer_anomalib.reader()
    )
    model.train()
    model.feature_extractor.eval()

    def fit():
        with torch.no_grad():
            for batch in loader:
                model(batch)
        model.fit()

    return fit, len(paths)


def anomavision(folder, workers):
    import torch

    import peer_anomavision

    model = peer_anomavision.padim()
    dataset = peer_anomavision.data(folder)
    loader = torch.utils.data.DataLoader(dataset, batch_size=BATCH, num_workers=workers)
    return lambda: model.fit(loader), len(dataset)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=["anomalib", "anomavision"])
    parser.add_argument("folder")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0, help="processes that read images beside the one that fits")
    args = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import torch

    torch.set_num_threads(args.threads)
    fit, images = {"anomalib": anomalib, "anomavision": anomavision}[args.peer](args.folder, args.workers)
    cpu, wall = time.process_time(), time.perf_counter()
    fit()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(json.dumps({"images": images, "seconds": wall, "cpu_seconds": cpu}), file=answers, flush=True)


if __name__ == "__main__":
    sys.exit(main())
