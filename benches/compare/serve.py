"""A peer as a served process: serve.py PEER MODEL --threads N --input IMAGE.f32 [--output FILE] [--option KEY=VALUE]

PEER names a module `peer_PEER` beside this file with `load(model, image, threads, options)`, which returns a function
that runs once and returns its outputs as arrays, and a line of facts.
"""

import argparse
import importlib
import os
import sys
import time


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer")
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shape", default="1,1,256,256")
    parser.add_argument("--input", required=True)
    parser.add_argument("--output")
    parser.add_argument("--option", action="append", default=[])
    args = parser.parse_args()

    # Answers go to the real stdout; whatever a library prints goes to stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # OpenMP and BLAS pools read these when they are loaded.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, str(args.threads))
    import numpy as np

    shape = tuple(map(int, args.shape.split(",")))
    image = np.fromfile(args.input, "<f4").reshape(shape)
    options = dict(option.split("=", 1) for option in args.option)
    run, facts = importlib.import_module(f"peer_{args.peer}").load(args.model, image, args.threads, options)
    for _ in range(5):
        outputs = run()
    if args.output:
        with open(args.output, "wb") as file:
            for output in outputs:
                np.ascontiguousarray(output, "<f4").tofile(file)
    print("ready", facts, file=answers, flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            cpu, wall = time.process_time_ns(), time.perf_counter_ns()
            run()
            times.append(f"{(time.perf_counter_ns() - wall) / 1e6:.4f}:{(time.process_time_ns() - cpu) / 1e6:.4f}")
        print(*times, file=answers, flush=True)


if __name__ == "__main__":
    main()
