"""What is measured for each part of the table, and the rows that come of it."""

import subprocess
import sys

import fitting
import network
import own
import path as inspection
from report import Row, below, ms

PEERS = ["onnxruntime", "openvino", "ncnn", "ncnn-gemm"]
HELD = ["ours-avx2", "openvino-avx2"]


class Comparison:
    def __init__(self, args, work):
        self.args, self.work = args, work
        self.rows, self.notes, self.facts, self.raw = [], [], {}, {}
        self.rounds, self.runs = (4, 8) if args.quick else (10, 15)
        self.model = self.cells = None

    def net(self, size, threads, wanted, runs):
        stem = self.work / f"net{size}"
        if not stem.with_suffix(".onnx").exists():
            network.export(self.args.cellgate, size, self.work)
        times, facts, off = network.compare(self.args.backbone, stem, size, threads, self.rounds, runs, wanted)
        self.facts |= {name: fact for name, fact in facts.items() if not name.startswith("ours")}
        self.raw[f"network {size} {threads}"] = {"times": times, "largest relative difference": off}
        for name, difference in off.items():
            if difference > network.TOLERANCE:
                self.notes.append(f"{name} at {size}² differs from ours by {difference:.1e}: its time says nothing")
        if threads == 1:
            self.heed(f"network {size}²", times["ours"])
        for name, time in times.items():
            print(f"  {size}² {threads} thread(s) {name}: {ms(time)}", file=sys.stderr)
        return times

    def heed(self, what, one_thread):
        """Says so where another program had the core for a part of the time."""
        if one_thread.wall > 1.1 * one_thread.cpu:
            self.notes.append(
                f"{what}: the machine was busy (wall {one_thread.wall / one_thread.cpu:.2f} × cpu): measure again"
            )

    def fastest(self, times, names):
        return min(names, key=lambda name: times[name].wall)

    def network(self):
        for threads in (1, 2):
            wanted = ["ours", *PEERS, "ncnn-fp32"] + (HELD if threads == 1 else [])
            times = self.net(256, threads, wanted, self.runs)
            plural = "" if threads == 1 else "s"
            best = self.fastest(times, [*PEERS, "ncnn-fp32"])
            self.rows.append(below(f"backbone 256², {threads} thread{plural}", 0.60, times["ours"], best, times[best]))
            for name in [*PEERS, "ncnn-fp32"]:
                if name != best:
                    self.rows.append(below(f"– against {name}", None, times["ours"], name, times[name]))
            if threads == 1:
                what = "backbone 256², 1 thread, both held to AVX2"
                self.rows.append(below(what, 0.60, times["ours-avx2"], "openvino", times["openvino-avx2"]))

    def classifier(self):
        # At this size a peer may be fastest with narrower vectors, or without Winograd.
        peers = [*PEERS, "ncnn-fp32", "openvino-avx2"]
        times = self.net(64, 1, ["ours", *peers], self.runs * 5)
        best = self.fastest(times, peers)
        self.rows.append(below("classifier, ResNet18 64², 1 thread", 0.70, times["ours"], best, times[best]))

    def threads(self):
        free = own.by_threads(self.args.backbone, 256, self.rounds, self.runs)
        beside = own.by_threads(self.args.backbone, 256, self.rounds, self.runs, hog=True)
        self.raw["threads"] = {"free": free, "one core taken": beside}
        self.heed("scaling", free["one"])
        ratio = free["one"].over(free["two"])
        scaling = ratio["wall"]
        detail = f"{scaling:.2f}, {ratio['paired_wall']:.2f} by round"
        what = "scaling from 1 thread to 2, free cores"
        self.rows.append(Row(what, "≥ 1.8", f"{ms(free['one'])} → {ms(free['two'])}", "", detail, scaling >= 1.8))
        ratio = beside["two"].over(beside["one"])
        detail = f"{ratio['wall']:.3f}, {ratio['paired_wall']:.3f} by round"
        what = "2 threads, one core taken by another program"
        met = ratio["wall"] <= 1.0
        self.rows.append(
            Row(what, "≤ 1 × one thread", ms(beside["two"]), f"one thread {ms(beside['one'])}", detail, met)
        )

    def bandwidth(self):
        lines = own.bandwidth(self.args.distance)
        self.raw["bandwidth"] = lines
        for line in lines:
            if line.get("embedding", "sparse") != "sparse":  # the default counts
                continue
            plural = "" if line["threads"] == 1 else "s"
            what = f"embedding + distance + heatmap, share of read bandwidth, {line['threads']} thread{plural}"
            ours = f"{100 * line['share']:.0f} % ({line['all_ms']:.2f} ms)"
            read = f"reading {line['bytes'] / 1e6:.1f} MB: {line['read_ms']:.2f} ms"
            self.rows.append(Row(what, "≥ 80 %", ours, read, "", line["share"] >= 0.8))

    def draw(self):
        """A hundred good synthetic cells, as PNG."""
        if self.cells is None:
            self.cells = self.work / "cells"
            command = [self.args.cellgate, "synth", "-o", self.cells, "-n", 100, "--class", "A", "--size", 300]
            subprocess.run([*map(str, command), "--no-masks"], check=True, stdout=sys.stderr)
        return self.cells

    def fit(self):
        few, count = (60, 120) if self.args.quick else (100, 300)
        count = max(self.args.images or count, few)
        results = fitting.compare(self.args.cellgate, self.draw(), self.work, sorted({few, count}), (1, 2))
        self.raw["fit"] = results

        def find(side, threads, files):
            return next(r for r in results if (r["side"], r["threads"], r["files"]) == (side, threads, files))

        for threads in (1, 2):
            plural = "" if threads == 1 else "s"
            mine = find("ours", threads, count)
            for peer in ("anomalib", "anomavision"):
                other = find(peer, threads, count)
                ratio, wanted = mine["rate"] / other["rate"], peer == "anomalib"
                self.rows.append(
                    Row(
                        f"fit from {count} PNG files, {threads} thread{plural}",
                        "≥ 5 ×" if wanted else "",
                        f"{mine['rate']:.1f} images/s",
                        f"{peer} {other['rate']:.1f} images/s",
                        f"{ratio:.2f}",
                        ratio >= 5 if wanted else None,
                    )
                )
        peaks = {side: [find(side, 2, files)["peak_mb"] for files in (few, count)] for side in ("ours", "anomalib")}
        low, high = peaks["ours"]
        self.rows.append(
            Row(
                f"peak memory of the fit, {few} → {count} images",
                "flat, < 700 MB",
                f"{low:.0f} → {high:.0f} MB",
                "anomalib {:.0f} → {:.0f} MB".format(*peaks["anomalib"]),
                f"{high / peaks['anomalib'][1]:.3f}",
                high < 700 and high < 1.05 * low,
            )
        )
        self.model = self.work / f"ours{count}-2.cgm"
        rate = find("ours", 2, count)["rate"]
        hours = 68748 / rate / 3600
        what = "68,748 images, one command"
        self.rows.append(
            Row(what, "resumable, flat", f"{rate:.1f} images/s here", "", f"extrapolated: {hours:.2f} h", None)
        )

    def path(self):
        if self.model is None:
            self.model = self.work / "small.cgm"
            fitting.ours(self.args.cellgate, self.draw(), self.model, 2, 100)
        cell = sorted(self.draw().glob("*.png"))[0]
        peers = inspection.build_peers(self.work)
        limits = {"anomalib-openvino": 0.35, "anomalib-torch": 0.20, "anomavision": None}
        for threads in (1, 2):
            times, facts = inspection.compare(
                self.args.inspection, self.model, cell, peers, threads, self.rounds, self.runs
            )
            allocations = float(facts.pop("ours"))
            self.facts |= facts
            self.raw[f"path {threads}"] = times
            if threads == 1:
                self.heed("tensor → score", times["ours"])
            plural = "" if threads == 1 else "s"
            for name, limit in limits.items():
                what = f"tensor → heatmap and score, {threads} thread{plural}"
                self.rows.append(below(what, limit, times["ours"], name, times[name]))
        in_torch = {name: peer for name, peer in peers.items() if name != "anomalib-openvino"}
        times, _ = inspection.compare(
            self.args.inspection, self.model, cell, in_torch, 1, self.rounds, self.runs, from_file=True
        )
        self.raw["path from file 1"] = times
        for name in in_torch:
            self.rows.append(below("PNG file → heatmap and score, 1 thread", None, times["ours"], name, times[name]))
        size, theirs = (
            self.model.stat().st_size / 1e6,
            peers["anomalib-openvino"][1].with_suffix(".bin").stat().st_size / 1e6,
        )
        self.rows.append(
            Row(
                "model file, k = 100",
                "≤ 45 MB",
                f"{size:.1f} MB",
                f"anomalib {theirs:.1f} MB",
                f"{size / theirs:.3f}",
                size <= 45,
            )
        )
        self.rows.append(Row("allocations per frame", "0", f"{allocations:g}", "", "", allocations == 0))

    def build(self):
        what = "cargo build --release from clean"
        if not self.args.build_time:
            self.rows.append(Row(what, "< 4 min", "not measured: --build-time", "", "", None))
            return
        seconds = own.build_time(self.args.repository)
        self.rows.append(Row(what, "< 4 min", f"{seconds:.0f} s", "", "", seconds < 240))
