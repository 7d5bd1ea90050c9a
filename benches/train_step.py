#!/usr/bin/env python3
"""A step of the classifier's training, ours against PyTorch's, taking turns on this machine.

cargo bench --no-run --bench train_step, then: train_step.py EXECUTABLE [--threads 1] [--rounds 8] [--runs 5]. Needs torch;
`benches/compare.sh` makes an environment that has it. Each side is a process of its own (benches/compare/turns.py).
PyTorch runs channels-last with its fused AdamW, which is its fastest way here.
"""

import argparse
import pathlib
import sys
import time

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE / "compare"), str(HERE.parent / "tests" / "python")]


def serve(threads):
    """PyTorch's side: answers counts from stdin as `benches/common/served.rs` does."""
    import torch
    from torch.nn import functional

    from train_step import ResNet18

    torch.set_num_threads(threads)
    torch.manual_seed(1)
    net = ResNet18(1, 3).to(memory_format=torch.channels_last)
    inputs = torch.randn(32, 1, 64, 64).to(memory_format=torch.channels_last)
    labels = torch.arange(32) % 3
    adam = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)

    def step():
        adam.zero_grad()
        loss = functional.cross_entropy(net(inputs), labels)
        loss.backward()
        adam.step()
        return loss.item()

    print(f"ready torch {torch.__version__}", flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            times.append((time.perf_counter() - wall, time.process_time() - cpu))
        print(" ".join(f"{wall * 1e3:.4f}:{cpu * 1e3:.4f}" for wall, cpu in times), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("executable", nargs="?", type=pathlib.Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--torch", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.torch:
        return serve(args.threads)
    if args.executable is None:
        parser.error("name the bench's executable")
    from turns import Side, take_turns

    threads = ["--threads", args.threads]
    ours = Side("ours", [args.executable, "--serve", *threads])
    torch = Side("torch", [sys.executable, __file__, "--torch", *threads])
    times = take_turns([ours, torch], args.rounds, args.runs)
    ratio = times["ours"].over(times["torch"])
    for side in (ours, torch):
        print(f"{side.name} ({side.facts}): {times[side.name].wall:.1f} ms, {times[side.name].cpu:.1f} ms cpu")
    print(f"ratio by round: {ratio['paired_wall']:.3f} wall, {ratio['paired_cpu']:.3f} cpu")


if __name__ == "__main__":
    main()
