#!/usr/bin/env python3
"""Runs the checks on the emulated board; `run.sh` calls it. See docs/board.md."""

import argparse
import hashlib
import json
import random
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from cells import LINE, STATION, Cells
from machine import HOST, BoardError, Listener, Machine

STATE = "/var/lib/cellgate/update"
# Emulation says nothing of speed: the takt only has to be long enough.
CONFIG = """
[model]
path = "{model}"
[station]
takt-ms = 30000
[camera]
width = 640
height = 480
[trigger]
source = "pulse"
[outbox]
verdicts = 20000
[mqtt]
host = "{host}"
port = {port}
line = "{line}"
station = "{station}"
[display]
output = "framebuffer"
period-ms = 1000
stale-after-ms = 60000
"""


def count_reasons(verdicts: list[dict]) -> dict[str, int]:
    """Of the INVALID among them."""
    return dict(Counter(verdict["reason"] for verdict in verdicts if verdict["outcome"] == "INVALID"))


class Board:
    """The station on the board, and what is known of it."""

    def __init__(self, machine: Machine, listener: Listener, cells: Cells):
        self.machine, self.listener, self.cells = machine, listener, cells
        self.expected = cells.expected()
        self.results: dict[str, dict] = {}
        self.hashes = {hashlib.sha256(path.read_bytes()).hexdigest() for path in cells.models}

    def note(self, check: str, **found) -> None:
        self.results[check] = found
        print(f"{check}: " + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in found.items()), flush=True)

    def configure(self, model: str) -> None:
        text = CONFIG.format(model=model, host=HOST, port=self.listener.port, line=LINE, station=STATION)
        self.machine.run("mkdir -p /etc/cellgate && cat > /etc/cellgate/config.toml", data=text.encode())

    def provide(self, deb: Path) -> None:
        """The package, the cells that pass, the model, the configuration, the keys."""
        machine = self.machine
        machine.put(deb, "/root/cellgate.deb")
        said = machine.run("dpkg -i /root/cellgate.deb 2>&1", timeout=600)
        machine.run("mkdir -p /var/lib/board/line /var/lib/board/bundles")
        for path in sorted((self.cells.folder / "line").glob("*.grey")):
            machine.put(path, f"/var/lib/board/line/{path.name}")
        machine.put(self.cells.models[0], "/var/lib/cellgate/model.cgm")
        self.configure("/var/lib/cellgate/model.cgm")
        machine.put(self.cells.folder / "keys.cgk", "/var/lib/board/keys.cgk")
        self.as_station(f"cellgate update install /var/lib/board/keys.cgk --trust --state {STATE}")
        machine.run("systemctl start board-line && systemctl enable cellgate")
        self.note("package", installed=machine.run("dpkg-query -W -f '${Package} ${Version} ${Status}' cellgate"),
                  said=said.splitlines()[-1] if said else "nothing")

    def as_station(self, command: str, timeout: float = 600) -> str:
        return self.machine.run(f"runuser -u cellgate -- {command}", timeout=timeout)

    def start_station(self) -> None:
        begin = time.monotonic()
        self.machine.run("systemctl restart cellgate", timeout=300)
        unit = self.machine.run("systemctl show cellgate -p ActiveState,Type,WatchdogUSec,StatusText,NRestarts,User")
        self.note("unit", ready_after_s=round(time.monotonic() - begin, 1), shows=unit.replace("\n", " "))

    def right(self, verdict: dict) -> str | None:
        """The cell that a verdict is about, found by the very numbers; None for an INVALID."""
        if verdict["outcome"] == "INVALID":
            return None
        for cell in self.expected[verdict["model"]]:
            if all(abs(verdict[key] - cell[key]) <= 0.01 * cell[key] for key in ("top", "max", "mean")):
                if (verdict["outcome"], verdict["class"]) != (cell["outcome"], cell["class"]):
                    raise BoardError(f"{cell['id']} is {cell['class']}, the board says {verdict}")
                return cell["id"]
        raise BoardError(f"no cell that was played has these numbers: {verdict}")

    def cells_come(self, count: int, timeout: float) -> None:
        """Verdicts arrive, and each is that of a cell that was played, with the numbers of this machine's judge."""
        since = self.listener.mark()
        begin = time.monotonic()
        verdicts = self.listener.wait_for_verdicts(count, timeout, since, lambda v: v["outcome"] != "INVALID")
        seconds = time.monotonic() - begin
        seen = {self.right(verdict) for verdict in verdicts}
        everything = self.listener.verdicts(since)
        invalid = count_reasons(everything)
        classes = {kind: sum(v["class"] == kind for v in verdicts) for kind in "ABC"}
        self.note("cells", judged=len(verdicts), different_cells=len(seen), classes=classes, invalid=invalid,
                  seconds=round(seconds, 1), judge_ms_median=sorted(v["total_us"] for v in verdicts)[len(verdicts) // 2] // 1000)
        played = {cell["id"] for cell in next(iter(self.expected.values()))}
        missing = played - seen
        if missing and count >= 3 * len(played):
            raise BoardError(f"these cells were never seen: {sorted(missing)}")

    def sequence(self) -> dict:
        """What the outside heard since the beginning: no gap, nothing that changed when it came again, and repeats only
        of the newest."""
        verdicts = self.listener.verdicts()
        known: dict[int, dict] = {}
        again = 0
        highest = 0
        for verdict in verdicts:
            seq = verdict["seq"]
            if seq in known:
                again += 1
                if known[seq] != verdict:
                    raise BoardError(f"verdict {seq} came again and is another: {known[seq]} {verdict}")
            elif highest and seq != highest + 1:
                raise BoardError(f"after verdict {highest} came {seq}")
            known[seq] = verdict
            highest = max(highest, seq)
        boots = sorted({verdict["boot"] for verdict in known.values()})
        for verdict in known.values():
            self.right(verdict)
        return {"verdicts": len(known), "came_again": again, "highest": highest, "boots": len(boots),
                "invalid": sum(v["outcome"] == "INVALID" for v in known.values())}

    def display(self, picture: Path) -> None:
        self.machine.screenshot(picture)
        self.note("display", picture=picture.name, bytes=picture.stat().st_size)
        if picture.stat().st_size < 3000:
            raise BoardError(f"{picture} shows next to nothing")

    def status(self) -> dict:
        return json.loads(self.as_station(f"cellgate update status --json --state {STATE}"))

    def in_force(self) -> tuple[str, int | None]:
        """Slot and version in force, its file compared byte by byte with what was made here."""
        status = self.status()
        active = [slot for slot in status["slots"] if slot["in-force"]]
        if not active:
            return "", None
        slot = active[0]["slot"].lower()
        digest = self.machine.run(f"sha256sum {STATE}/{slot}.cgm").split()[0]
        if digest not in self.hashes:
            raise BoardError(f"the model in force is none that was made: {status}")
        return slot, active[0]["version"]

    def update(self) -> float:
        """Installs the next bundle; seconds that took."""
        version = self.send_bundle()
        begin = time.monotonic()
        self.as_station(self.install_command(version))
        seconds = time.monotonic() - begin
        slot, found = self.in_force()
        if found != version:
            raise BoardError(f"version {version} was installed, {found} is in force")
        self.as_station(f"cellgate update confirm --state {STATE}")
        self.configure(f"{STATE}/{slot}.cgm")
        self.machine.run("systemctl restart cellgate", timeout=300)
        since = self.listener.mark()
        judged = self.listener.wait_for_verdicts(1, 300, since, lambda v: v["outcome"] != "INVALID")[0]
        expected = list(self.expected)[version % 2]
        if judged["model"] != expected:
            raise BoardError(f"after the update {judged['model']} judges instead of {expected}")
        self.note("update", version=version, slot=slot, install_s=round(seconds, 1), model=judged["model"][:12])
        return seconds

    def send_bundle(self) -> int:
        path = self.cells.bundle()
        self.machine.put(path, f"/var/lib/board/bundles/{path.name}")
        return self.cells.bundles

    def install_command(self, version: int) -> str:
        return f"cellgate update install /var/lib/board/bundles/{version}.cgb --line {LINE} --station {STATION} --state {STATE}"

    def faults(self) -> None:
        """The camera's faults, by the controls of its driver: no PASS that is none, and the station goes on."""
        found = {}
        for name, control in (("damaged buffers", "inject_v4l2_buf_flag_error"), ("fatal error", "inject_fatal_streaming_error"),
                              ("unplugged", "disconnect")):
            since = self.listener.mark()
            restarts = self.machine.run("systemctl show cellgate -p NRestarts --value")
            for _ in range(3 if name == "damaged buffers" else 1):
                self.machine.run(f"v4l2-ctl -d /dev/video0 -c {control}=1", check=False)
            if name == "unplugged":
                # The driver plugs itself in again when nobody has any of its devices open.
                self.machine.run("systemctl stop board-line; sleep 3; systemctl restart board-camera board-line", timeout=120)
            verdicts = self.listener.wait_for_verdicts(3, 300, since, lambda v: v["outcome"] != "INVALID")
            for verdict in verdicts:
                self.right(verdict)
            if self.machine.run("systemctl show cellgate -p NRestarts --value") != restarts:
                raise BoardError(f"{name}: the station was restarted")
            found[name] = {"judged_again": len(verdicts), "invalid": count_reasons(self.listener.verdicts(since))}
        self.note("camera faults", **found)

    def power_cuts(self, count: int, duration: float, seed: int) -> None:
        """Cuts the power during an update, at moments that are spread over it, every second time at the very instant in
        which a verdict is heard."""
        coin = random.Random(seed)
        cuts = []
        for number in range(count):
            before = self.in_force()[1]
            version = self.send_bundle()
            highest = self.sequence()["highest"]
            install = self.machine.begin("runuser -u cellgate -- " + self.install_command(version))
            delay = duration * (number + coin.random()) / count
            time.sleep(delay)
            at_verdict = number % 2 == 1
            if at_verdict:
                self.listener.wait_for_verdicts(1, 120, self.listener.mark())
            lost = self.machine.cut()
            finished = install.poll() == 0
            install.wait()
            heard = self.sequence()["highest"]
            journal = self.machine.check_disk()
            since = self.listener.mark()
            self.machine.start()
            self.machine.wait_up()
            replayed = re.search(r"recovery complete", self.machine.run("dmesg | grep -i ext4-fs")) is not None
            errors = self.machine.run("dmesg | grep -iE 'ext4-fs error|i/o error' || true")
            if errors:
                raise BoardError(f"after cut {number + 1}: {errors}")
            status = self.status()
            slot, after = self.in_force()
            if after not in (before, version):
                raise BoardError(f"after cut {number + 1} version {after} is in force, neither {before} nor {version}")
            if finished and after != version:
                raise BoardError(f"the update to {version} was reported as done and is gone after cut {number + 1}")
            self.listener.wait_for_verdicts(2, 300, since, lambda v: v["seq"] > heard and v["outcome"] != "INVALID")
            sequence = self.sequence()
            if status["phase"] == "probation":
                self.as_station(f"cellgate update confirm --state {STATE}")
            cuts.append({"after_s": round(delay, 2), "at_a_verdict": at_verdict, "unflushed_sectors": lost["unflushed_sectors"],
                         "lost_sectors": lost["lost"], "journal_replayed": replayed, "phase": status["phase"],
                         "version_before": before, "version_after": after, "sent": version, "told_done": finished,
                         "heard_before": heard, "verdicts_during": heard - highest, "came_again": sequence["came_again"]})
            print(f"cut {number + 1}: {json.dumps(cuts[-1])} {journal}", flush=True)
        self.results["power cuts"] = {"count": count, "cuts": cuts}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--made", type=Path, required=True)
    parser.add_argument("--deb", type=Path, required=True)
    parser.add_argument("--cellgate", type=Path, required=True)
    parser.add_argument("--cuts", type=int, default=10)
    parser.add_argument("--cells", type=int, default=39)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-faults", action="store_true")
    parser.add_argument("--keep-going", action="store_true")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    folder = args.made / "run"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("serial-*.log"):
        old.unlink()
    begin = time.monotonic()
    cells = Cells(args.made / "cells", args.cellgate.resolve())
    cells.make()
    listener = machine = board = None
    failure = None
    try:
        listener = Listener(folder)
        machine = Machine(args.made, folder, args.seed)
        machine.new_disk()
        machine.start()
        board = Board(machine, listener, cells)
        board.note("boot", ssh_after_s=round(machine.wait_up(), 1), kernel=machine.run("uname -rm"))
        board.provide(args.deb)
        board.start_station()
        board.cells_come(args.cells, 900)
        board.display(folder / "display.png")
        duration = board.update()
        if not args.no_faults:
            board.faults()
        board.power_cuts(args.cuts, duration, args.seed)
        board.note("sequence", **board.sequence())
        if args.keep_going:
            input(f"the board runs: {' '.join(machine.ssh_command())}; Enter ends it ")
        board.note("end", **machine.shut_down())
        machine.check_disk()
    except (BoardError, RuntimeError, OSError) as error:
        failure = str(error)
    finally:
        for part in (machine, listener):
            if part is not None:
                part.stop()
    results = board.results if board else {}
    results["result"] = {"passed": failure is None, "failure": failure, "seconds": round(time.monotonic() - begin)}
    (folder / "summary.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"FAILED: {failure}" if failure else "all checks passed", f"({results['result']['seconds']} s)")
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
