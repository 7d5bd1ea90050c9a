"""What the board is shown and given: cells that pass under its camera, models, and update bundles, all made here.

The cells are drawn, since real ones may not be passed on. The judge of this machine says what the board must say.
"""

import json
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

WIDTH, HEIGHT, CELL = 640, 480, 480
# More than the eight frames among which the station looks for one that comes again.
CELLS = {"A": 9, "C": 4}
# So many of them, good and defective, prove a model on the board.
GOLDEN = 4
LINE, STATION = "line1", "el-07"


def read_png(path: Path) -> tuple[int, int, bytes]:
    """Width, height and pixels of a PNG of 8-bit grey, not interlaced."""
    data = path.read_bytes()
    at, header, packed = 8, None, b""
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            header = struct.unpack(">IIBBBBB", body)
        elif kind == b"IDAT":
            packed += body
        at += 12 + length
    width, height = header[:2]
    assert header[2:] == (8, 0, 0, 0, 0), f"{path} is not 8-bit grey"
    raw, before, rows = zlib.decompress(packed), bytes(width), []
    for y in range(height):
        start = y * (width + 1)
        row = unfilter(raw[start], bytearray(raw[start + 1 : start + 1 + width]), before)
        rows.append(row)
        before = row
    return width, height, b"".join(rows)


def unfilter(kind: int, row: bytearray, above: bytes) -> bytes:
    for x in range(len(row)):
        left, up = (row[x - 1] if x else 0), above[x]
        if kind == 1:
            row[x] = (row[x] + left) & 255
        elif kind == 2:
            row[x] = (row[x] + up) & 255
        elif kind == 3:
            row[x] = (row[x] + (left + up) // 2) & 255
        elif kind == 4:
            corner = above[x - 1] if x else 0
            guess = left + up - corner
            distances = (abs(guess - left), abs(guess - up), abs(guess - corner))
            row[x] = (row[x] + (left, up, corner)[distances.index(min(distances))]) & 255
    return bytes(row)


class Cells:
    """The line's cells, two models, and bundles of them, in `folder`."""

    def __init__(self, folder: Path, cellgate: Path):
        self.folder, self.cellgate = folder, cellgate
        self.models = [folder / "model-1.cgm", folder / "model-2.cgm"]

    def call(self, *args) -> str:
        done = subprocess.run([self.cellgate, *args], cwd=self.folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"cellgate {' '.join(map(str, args))}: {done.stderr.strip()}")
        return done.stdout

    def make(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "line").mkdir(parents=True)
        (self.folder / "frames").mkdir()
        (self.folder / "golden").mkdir()
        (self.folder / "bundles").mkdir()
        drawn = []
        for kind, count in CELLS.items():
            self.call("synth", "-o", f"drawn-{kind}", "--class", kind, "-n", str(count), "--size", str(CELL),
                      "--first", "5000", "--no-masks")
            drawn.append(sorted((self.folder / f"drawn-{kind}").glob("*.png")))
        # A, A, C, A, A, C, …, and what is left.
        good, bad = drawn
        order = []
        while good or bad:
            order += good[:2] + bad[:1]
            good, bad = good[2:], bad[1:]
        for number, path in enumerate(order):
            width, height, pixels = read_png(path)
            assert (width, height) == (CELL, HEIGHT), f"{path} is not {CELL} x {HEIGHT}"
            margin = bytes((WIDTH - CELL) // 2)
            frame = b"".join(margin + pixels[y * width : (y + 1) * width] + margin for y in range(height))
            name = f"{number:02}-{path.stem}"
            (self.folder / "line" / f"{name}.grey").write_bytes(frame)
            for folder in ("frames", "golden") if 1 <= number <= GOLDEN else ("frames",):
                (self.folder / folder / f"{name}.pgm").write_bytes(b"P5\n%d %d\n255\n" % (WIDTH, HEIGHT) + frame)
        for seed, model in enumerate(self.models, 1):
            self.call("fit", "--synth", "150", "--synth-size", str(CELL), "--size", "64", "--grid", "16", "-k", "24",
                      "--seed", str(seed), "-o", model.name)
        self.call("bundle", "keygen", "anna")
        self.call("bundle", "keys", "anna.pub", "--threshold", "1", "-o", "keys.cgk")
        self.call("bundle", "sign", "keys.cgk", "--key", "anna.key")

    def expected(self) -> dict[str, list[dict]]:
        """By model, the verdict on each cell of this machine's judge."""
        result = {}
        for model in self.models:
            verdicts = [json.loads(line) for line in self.call("inspect", "--json", model.name, "frames").splitlines()]
            result[verdicts[0]["model"]] = verdicts
        return result

    def bundle(self, number: int) -> None:
        """The bundle of this number, of the two models in turn; the line begins with the first of them."""
        path = f"bundles/{number}.cgb"
        self.call("bundle", "create", self.models[number % 2].name, "--number", str(number), "--golden", "golden",
                  "--line", LINE, "-o", path)
        self.call("bundle", "sign", path, "--key", "anna.key")
