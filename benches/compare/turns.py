"""Sides that take turns, and what their times say.

A side is a process of its own. It prints `ready` and one line of facts, then reads counts from stdin, one a line, and
answers each with that many `wall:cpu` pairs in milliseconds: `benches/backbone.rs --serve` and `serve.py` speak so. One
process a side keeps thread pools, allocators and environment (`ONEDNN_MAX_CPU_ISA`) apart.
"""

import dataclasses
import os
import subprocess
import time

import numpy as np

# An idle side's threads may spin for a while after a batch: waiting here keeps them out of the next side's time, and
# lets every peer spin as it likes inside its own.
GAP_S = 0.06


class Side:
    def __init__(self, name, command, environment=None):
        self.name = name
        self.rounds = []
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {key: str(value) for key, value in (environment or {}).items()},
        )
        ready, _, self.facts = self.process.stdout.readline().strip().partition(" ")
        if ready != "ready":
            self.close()
            raise RuntimeError(f"{name} did not start: {' '.join(map(str, command))}")

    def measure(self, count):
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().split()
        if len(answer) != count:
            raise RuntimeError(f"{self.name} stopped in the middle of a batch")
        self.rounds.append(np.array([[float(part) for part in pair.split(":")] for pair in answer]))

    def close(self):
        if self.process.stdin:
            self.process.stdin.close()
        self.process.wait()


@dataclasses.dataclass
class Times:
    """Medians over all runs, and over each round, in milliseconds."""

    wall: float
    cpu: float
    rounds: list  # of (wall, cpu)

    @staticmethod
    def of(rounds):
        wall, cpu = np.median(np.concatenate(rounds), axis=0)
        return Times(float(wall), float(cpu), [tuple(map(float, np.median(r, axis=0))) for r in rounds])

    def over(self, other):
        """The ratios of medians, and the medians of the ratios of each round, wall and processor time."""
        paired = np.median(np.array(self.rounds) / np.array(other.rounds), axis=0)
        return {
            "wall": self.wall / other.wall,
            "cpu": self.cpu / other.cpu,
            "paired_wall": float(paired[0]),
            "paired_cpu": float(paired[1]),
        }


def take_turns(sides, rounds, runs):
    """Runs the sides A B C A B C and closes them. Returns their times by name."""
    try:
        for side in sides:
            side.measure(3)
            side.rounds.clear()
        for _ in range(rounds):
            for side in sides:
                time.sleep(GAP_S)
                side.measure(runs)
    finally:
        for side in sides:
            side.close()
    return {side.name: Times.of(side.rounds) for side in sides}
