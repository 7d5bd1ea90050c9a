#!/usr/bin/env python3
"""Runs the checks on the emulated board; `run.sh` calls it. See docs/board.md."""

import argparse
import hashlib
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import updates
from cells import LINE, STATION, Cells
from machine import HOST, BoardError, Listener, Machine
from updates import STATE, Updates

# What the board's configuration says besides what every station must be told. Emulation says nothing of speed: the takt
# only has to be long enough.
SETTINGS = ("station.takt-ms=10000", "camera.width=640", "camera.height=480", 'trigger.source="pulse"',
            "outbox.verdicts=20000", 'display.output="framebuffer"', "display.stale-after-ms=60000", *updates.SETTINGS)
# What else provisioning is asked for, and what it says of it on a board that is no Jetson.
POLICY = ("--power-mode", "0", "--clocks", "max")
NO_POLICY = ("power mode: no nvpmodel on this board", "clocks: no jetson_clocks on this board")
# On a screen of 800 x 480, where the lines over the counts of classes lie.
COUNTS = {"A": 80, "B": 235, "C": 395, "INVALID": 550}


def count_reasons(verdicts: list[dict]) -> dict[str, int]:
    """Of the INVALID among them."""
    return dict(Counter(verdict["reason"] for verdict in verdicts if verdict["outcome"] == "INVALID"))


class Board:
    """The station on the board, and what is known of it."""

    def __init__(self, machine: Machine, listener: Listener, cells: Cells, script: Path):
        self.machine, self.listener, self.cells, self.script = machine, listener, cells, script
        self.expected = cells.expected()
        self.results: dict[str, dict] = {}
        self.noted = time.monotonic()
        # Number of the first message that counts for the sequence.
        self.counted_from = 0
        self.hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in cells.models]

    def note(self, check: str, **found) -> None:
        """Keeps what a step found, with the seconds that it took."""
        now = time.monotonic()
        found["took_s"], self.noted = round(now - self.noted, 1), now
        self.results[check] = found
        print(f"{check}: " + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in found.items()), flush=True)

    def provide(self, deb: Path) -> None:
        """The cells that pass, and then all that makes a station of the board, by the script that does so in the field;
        the second time it must find nothing to do."""
        machine = self.machine
        machine.put_folder(self.cells.folder / "line", "/var/lib/board/line")
        # The doctor looks through the camera.
        machine.run("systemctl start board-line")
        first = self.provision(deb, "provision-1.log")
        again = self.provision(deb, "provision-2.log")
        if again[-1] != "0 changes":
            raise BoardError(f"the second provisioning did not end with 0 changes: {again}")
        for said in NO_POLICY:
            if not any(said in line for line in first):
                raise BoardError(f"provisioning did not say '{said}': {first}")
        doctor = [line for line in first if line.startswith(("WARN", "FAIL")) or " checks: " in line]
        self.note("provisioned", first=first[-1], again=again[-1], doctor=doctor, policy=NO_POLICY,
                  package=machine.run("dpkg-query -W -f '${Package} ${Version} ${Status}' cellgate"))

    def provision(self, deb: Path, log: str) -> list[str]:
        *ssh, host = self.machine.ssh_command()
        command = ["bash", self.script, "--host", host, "--ssh", " ".join(ssh), "--package", deb, "--line", LINE,
                   "--station", STATION, "--broker", f"{HOST}:{self.listener.port}", "--camera", "/dev/video0",
                   "--model", self.cells.models[0], "--keys", self.cells.folder / "keys.cgk", *POLICY]
        for setting in SETTINGS:
            command += ["--set", setting]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, timeout=900, check=False)
        (self.machine.folder / log).write_text(done.stdout)
        if done.returncode:
            raise BoardError(f"{self.script}: status {done.returncode}: {done.stdout.strip()}")
        return done.stdout.strip().splitlines()

    def unit(self) -> None:
        shows = self.machine.run("systemctl show cellgate -p ActiveState,Type,WatchdogUSec,StatusText,NRestarts,User")
        self.note("unit", shows=shows.replace("\n", " "))
        for must in ("ActiveState=active", "Type=notify", "User=cellgate", "NRestarts=0"):
            if must not in shows:
                raise BoardError(f"the service is not {must}: {shows}")

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
        times = sorted(verdict["total_us"] // 1000 for verdict in verdicts)
        self.note("cells", judged=len(verdicts), different_cells=len(seen), classes=classes, invalid=invalid,
                  seconds=round(seconds, 1), judge_ms_median=times[len(times) // 2])
        played = {cell["id"] for cell in next(iter(self.expected.values()))}
        missing = played - seen
        if missing and count >= 2 * len(played):
            raise BoardError(f"these cells were never seen: {sorted(missing)}")

    def sequence(self) -> dict:
        """What the outside heard since the beginning (or a control): no gap, nothing that changed when it came again,
        and repeats only of the newest."""
        verdicts = self.listener.verdicts(self.counted_from)
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
        """The screen follows the verdicts: its large field shows both a good cell and a defective one in time, each
        just after such a verdict was heard."""
        shown, end = set(), time.monotonic() + 300
        while not {"A", "C"} <= shown:
            if time.monotonic() > end:
                raise BoardError(f"within 300 s the display showed {sorted(shown)} of A and C, see {picture}")
            screen = self.machine.screenshot(picture)
            # Each class has the colour of the line over its count, and so has the field of the newest verdict.
            colours = {screen.at(x, 354): name for name, x in COUNTS.items()}
            said = colours.get(screen.at(14, 50))
            if len(colours) == len(COUNTS) and said in {v["class"] or "INVALID" for v in self.listener.verdicts()[-4:]}:
                shown.add(said)
            time.sleep(1)
        self.note("display", showed=sorted(shown), picture=picture.name)

    def in_force(self) -> tuple[int, str]:
        """Version in force and the update's phase, as the board says."""
        said, sums = self.machine.run(f"runuser -u cellgate -- cellgate update status --json --state {STATE} && "
                                      f"cd {STATE} && sha256sum *.cgm").split("\n", 1)
        return self.whole_model(said, sums)

    def in_force_on_disk(self, folder: Path) -> tuple[int, str]:
        """The same by a copy of the state folder, as a cut left it."""
        sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in folder.glob("*.cgm")]
        return self.whole_model(self.cells.call("update", "status", "--json", "--state", folder), "\n".join(sums))

    def whole_model(self, said: str, sums: str) -> tuple[int, str]:
        """Version and phase of `cellgate update status --json`; the model has every byte of what was made here."""
        status = json.loads(said)
        active = [slot for slot in status["slots"] if slot["in-force"]]
        if not active:
            raise BoardError(f"no model is in force: {status}")
        version = active[0]["version"]
        if f"{self.hashes[version % 2]}  {active[0]['slot'].lower()}.cgm" not in sums:
            raise BoardError(f"the model in force is not that of bundle {version}: {status} {sums}")
        return version, status["phase"]

    def faults(self) -> None:
        """The camera's faults, by the controls of its driver: no PASS that is none, and the station goes on."""
        for name, control in (("damaged buffers", "inject_v4l2_buf_flag_error"),
                              ("fatal error", "inject_fatal_streaming_error"), ("unplugged", "disconnect")):
            since = self.listener.mark()
            restarts = self.machine.run("systemctl show cellgate -p NRestarts --value")
            for _ in range(3 if name == "damaged buffers" else 1):
                self.machine.run(f"v4l2-ctl -d /dev/video0 -c {control}=1", check=False)
            if name == "unplugged":
                # The driver plugs itself in again when nobody has any of its devices open.
                self.machine.run("systemctl stop board-line; sleep 3; systemctl start board-line", timeout=120)
            verdicts = self.listener.wait_for_verdicts(3, 300, since, lambda v: v["outcome"] != "INVALID")
            for verdict in verdicts:
                self.right(verdict)
            if self.machine.run("systemctl show cellgate -p NRestarts --value") != restarts:
                raise BoardError(f"{name}: the station was restarted")
            self.note(f"camera, {name}", judged_again=len(verdicts),
                      invalid=count_reasons(self.listener.verdicts(since)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--made", type=Path, required=True)
    parser.add_argument("--deb", type=Path, required=True)
    parser.add_argument("--provision", type=Path, required=True)
    parser.add_argument("--cellgate", type=Path, required=True)
    parser.add_argument("--cuts", type=int, default=10)
    parser.add_argument("--cells", type=int, default=26)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--brief", action="store_true", help="without the camera's faults and the controls")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    folder = args.made / "run"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("serial-*.log"):
        old.unlink()
    begin = time.monotonic()
    cells = Cells(args.made / "cells", args.cellgate.resolve())
    cells.make()
    for number in range(updates.versions(args.cuts)):
        cells.bundle(number + 1)
    listener = machine = board = fleet = None
    failure = None
    try:
        listener = Listener(folder, f"cellgate/{LINE}/{STATION}")
        machine = Machine(args.made, folder, args.seed)
        machine.new_disk()
        machine.start()
        board = Board(machine, listener, cells, args.provision)
        board.note("boot", ssh_after_s=round(machine.wait_up(), 1), kernel=machine.run("uname -rm"))
        fleet = Updates(board)
        fleet.give_authority()
        board.provide(args.deb)
        board.unit()
        board.cells_come(args.cells, 900)
        board.display(folder / "display.png")
        fleet.whole()
        if not args.brief:
            board.faults()
        fleet.power_cuts(args.cuts, args.seed)
        board.note("sequence", **board.sequence())
        if not args.brief:
            fleet.without_fsync()
        board.note("end", **machine.shut_down(), disk=fleet.look_at_disk())
        if not args.brief:
            fleet.on_a_lying_disk()
    except (BoardError, RuntimeError, OSError) as error:
        failure = str(error)
    finally:
        for part in (machine, listener, fleet):
            if part is not None:
                part.stop()
    results = board.results if board else {}
    results["result"] = {"passed": failure is None, "failure": failure, "seconds": round(time.monotonic() - begin)}
    (folder / "summary.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"FAILED: {failure}" if failure else "all checks passed", f"({results['result']['seconds']} s)")
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
