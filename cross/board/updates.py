"""New models for the station on the board, as a fleet gets them: offered at the broker, fetched by the station itself,
tried beside the line, put in force between two cells, and watched. And what becomes of that when the power is cut."""

import json
import random
import re
import time
from dataclasses import dataclass
from pathlib import Path

from bundles import Server, certify
from machine import HOST, BoardError

GROUP = "pilot"
STATE = "/var/lib/cellgate/update"
AUTHORITY = "/var/lib/board/bundles/ca.pem"
# Live frames that a new model judges beside the old one.
SHADOW = 8
# What the configuration says for it. Small numbers, for a slow board; the pace is that of a slow line, so that a
# download lasts some seconds.
SETTINGS = (f'update.state="{STATE}"', f'update.groups=["{GROUP}"]', f'update.ca="{AUTHORITY}"',
            "update.bandwidth-kb-s=150", "update.spread-s=0", "update.retry-max-s=5", f"update.shadow.frames={SHADOW}",
            "update.probation.cells=50", "update.probation.starts=20", "update.probation.rejected=0.6",
            "update.probation.drift=false")
# How long a disk that lies holds back what it was told to keep, in seconds of this machine.
LIES = 120
# An update takes minutes; on a busy machine many.
PATIENCE = 1800


@dataclass
class Update:
    """A version, and what verdicts call its model."""

    version: int
    model: str

    def is_good(self, topic: str, said: dict) -> bool:
        return topic == "update" and (said["state"], said["number"]) == ("good", self.version)

    def is_in_force(self, topic: str, said: dict) -> bool:
        """The station has told that it is."""
        return said["number"] == self.version if topic == "update" else said["model"] == self.model

    def is_under_way(self, topic: str, said: dict) -> bool:
        return topic == "update" and said["offered"] == self.version


def state(*names: str, progress: float = 0):
    """The station reports one of these states, so far or further."""
    return lambda update, topic, said: (update.is_under_way(topic, said) and said["state"] in names
                                        and (said["progress"] or 0) >= progress)


def shadow(frames: int):
    """The new model has judged so many frames beside the old one."""
    return lambda update, topic, said: (state("shadow")(update, topic, said)
                                        and (said["shadow"] or {"frames": 0})["frames"] >= frames)


# When the power is cut, by what the station itself says of its update, in the order of an update; and whether the cut
# then waits for the next verdict, to fall into the instant in which it is heard.
MOMENTS = (
    ("in the download", state("download", progress=0.2), False),
    ("late in the download", state("download", progress=0.6), True),
    ("checked and unpacked", state("verify", "stage", "prove"), False),
    ("golden frames", state("prove"), True),
    ("shadow", shadow(2), True),
    ("the switch: the last frame of the shadow is judged", shadow(SHADOW), False),
    ("the new model's first verdict",
     lambda update, topic, said: topic == "verdict" and update.is_in_force(topic, said), False),
    ("probation", state("probation"), True),
    ("half of probation", state("probation", progress=0.5), True),
    ("good", lambda update, topic, said: update.is_good(topic, said), False),
)


def moments(count: int) -> list:
    """So many of them, spread over an update; again from the beginning when they are at their end."""
    whole, rest = divmod(count, len(MOMENTS))
    spread = [MOMENTS[(2 * number + 1) * len(MOMENTS) // (2 * rest)] for number in range(rest)]
    return list(MOMENTS) * whole + spread


def versions(cuts: int) -> int:
    """Bundles that are made beforehand, before the board's clock begins, which is slower than this machine's. More than
    are needed, as an update can outrun a moment at which it was to be cut."""
    return 4 + 2 * cuts // len(MOMENTS)


class Updates:
    """What is offered to the board."""

    def __init__(self, board):
        self.board, self.machine, self.listener, self.cells = board, board.machine, board.listener, board.cells
        folder = self.cells.folder / "bundles"
        certify(folder, HOST)
        self.server = Server(folder, folder / "server.pem")
        self.number = 0
        # The version in force, as far as is known for sure.
        self.in_force = 0
        # Number of the first message after the last offer.
        self.offered_at = 0

    def give_authority(self) -> None:
        self.machine.run(f"mkdir -p {Path(AUTHORITY).parent} && cat >{AUTHORITY} && sync -f {AUTHORITY}",
                         data=(self.cells.folder / "bundles" / "ca.pem").read_bytes())

    def offer(self, by_chunks: bool = False) -> Update:
        """Offers the next version to the board's group, in chunks at the broker or over HTTPS."""
        self.number += 1
        number, self.offered_at = self.number, self.listener.mark()
        where = ("--chunks",) if by_chunks else ("--url", f"https://{HOST}:{self.server.server_port}/{number}.cgb")
        self.cells.call("fleet", "offer", f"bundles/{number}.cgb", "--keys", "keys.cgk", "--group", GROUP, *where,
                        "--host", "127.0.0.1", "--port", str(self.listener.port))
        return Update(number, list(self.board.expected)[number % 2])

    def whole(self) -> None:
        """One update without a cut, in chunks, seen from outside from the offer to good."""
        begin = time.monotonic()
        update = self.offer(by_chunks=True)
        before = self.offered_at
        last, _, report = self.listener.wait_for(f"version {update.version} good", PATIENCE, before, update.is_good)
        seconds = time.monotonic() - begin
        self.check_in_force(update, "good")
        states = []
        for said in self.listener.said("update", before, last):
            if said["offered"] == update.version and said["state"] not in states:
                states.append(said["state"])
        order = [verdict["model"] for verdict in self.listener.verdicts(before, last)]
        change = order.index(update.model)
        if update.model in order[:change] or set(order[change:]) != {update.model}:
            raise BoardError(f"the models did not change once, between two cells: {order}")
        self.board.sequence()
        self.in_force = update.version
        self.board.note("update by the station", version=update.version, by="chunks at the broker", states=states,
                        shadow=report["shadow"], cells_before=change, cells_after=len(order) - change,
                        until_good_s=round(seconds, 1))

    def check_in_force(self, update: Update, phase: str) -> None:
        found = self.board.in_force()
        if found != (update.version, phase):
            raise BoardError(f"version {update.version} was said to be {phase}, on the disk is {found}")

    def power_cuts(self, count: int, seed: int) -> None:
        """Cuts the power again and again while the station updates itself; each time it must come up whole and go on by
        itself, to the end."""
        coin = random.Random(seed)
        cuts = self.board.results["power cuts"] = []
        update, since = None, 0
        for number, (name, moment, at_verdict) in enumerate(moments(count), 1):
            begin = time.monotonic()
            while True:
                if update is None:
                    update = self.offer()
                    since = self.offered_at
                _, topic, said = self.listener.wait_for(
                    f"cut {number}, {name}", PATIENCE, since,
                    lambda topic, said: moment(update, topic, said) or update.is_good(topic, said))
                if moment(update, topic, said):
                    break
                # It has outrun the moment: the next version will come to it.
                self.check_in_force(update, "good")
                self.in_force, update = update.version, None
            reached = time.monotonic() - begin
            if at_verdict:
                self.listener.wait_for_verdicts(1, 300, self.listener.mark())
            else:
                time.sleep(0.5 * coin.random())
            lost = self.machine.cut()
            since, found = self.after_cut(f"cut {number}", update, lost)
            cut = {"moment": name, "at_a_verdict": at_verdict, **found, "until_the_moment_s": round(reached),
                   "until_judging_again_s": round(time.monotonic() - begin - reached)}
            cuts.append(cut)
            print(f"cut {number}: {json.dumps(cut)}", flush=True)
        if update is not None:
            self.listener.wait_for(f"version {update.version} good", PATIENCE, since, update.is_good)
            self.check_in_force(update, "good")
            self.in_force = update.version
        self.board.note("after the cuts", version_in_force=self.in_force, cuts=len(cuts),
                        downloads_began_at=self.server.starts, fleet_status=self.fleet_status())

    def after_cut(self, what: str, update: Update, lost: dict) -> tuple[int, dict]:
        """Starts the board again and looks at everything; the number of the first message since, and what was found."""
        # What was on its way to the listener has arrived.
        time.sleep(1)
        before, board, listener = self.in_force, self.board, self.listener
        told = listener.has_heard(self.offered_at, update.is_in_force)
        heard, known = board.sequence(), listener.verdicts(board.counted_from)
        boot = max(verdict["boot"] for verdict in known)
        journal, (left_version, left_phase) = self.look_at_disk()
        since = listener.mark()
        self.machine.start()
        up = self.machine.wait_up()
        kernel = self.machine.run("dmesg | grep -iE 'ext4-fs|i/o error|jbd2'")
        if re.search("error", kernel, re.IGNORECASE):
            raise BoardError(f"after {what}: {kernel}")
        version, phase = board.in_force()
        if left_version not in (before, update.version):
            raise BoardError(f"{what} left version {left_version} in force, neither {before} nor {update.version}")
        if told and left_version != update.version:
            raise BoardError(f"version {update.version} was told to be in force, {what} left {left_version}")
        if version not in (left_version, update.version):
            raise BoardError(f"{what} left version {left_version} in force, {version} is after the start")

        def new(topic: str, said: dict) -> bool:
            if topic != "verdict":
                return False
            given_before = said["seq"] <= heard["highest"] and said not in known
            return given_before or said["boot"] > boot and said["outcome"] != "INVALID"

        first = listener.wait_for(f"a verdict after {what}", PATIENCE, since, new)[2]
        board.sequence()
        if update.is_in_force("verdict", first) and version != update.version:
            raise BoardError(f"after {what} version {update.version} judges, on the disk {version} is in force")
        if told and not update.is_in_force("verdict", first):
            raise BoardError(f"after {what} the model before version {update.version} judges")
        listener.wait_for_verdicts(2, PATIENCE, since, lambda v: v["outcome"] != "INVALID" and v["boot"] > boot)
        self.in_force = version
        return since, {"lost_sectors": lost["lost"], "unflushed_sectors": lost["unflushed_sectors"],
                       "ssh_after_s": round(up), "journal": journal, "journal_replayed": "recovery complete" in kernel,
                       "version_before": before, "told_in_force": told, "left_version": left_version,
                       "left_phase": left_phase, "version_after": version, "phase_after": phase,
                       "heard_before": heard["highest"],
                       "came_again": board.sequence()["came_again"] - heard["came_again"]}

    def look_at_disk(self) -> tuple[str, tuple[int, str]]:
        """Of a board without power: what the replay of the journal said, and version and phase in force on the disk."""
        folder = self.machine.folder.resolve() / "left"
        journal = self.machine.check_disk(STATE, folder)
        return journal, self.board.in_force_on_disk(folder / Path(STATE).name)

    def control(self, what: str) -> None:
        """A cut after which the checks must find fault, since the station's durable writes were none; else they would
        see nothing. The station has just been started; what was heard before is not looked at."""
        self.board.counted_from = self.listener.mark()
        update = self.offer()
        self.listener.wait_for_verdicts(5, PATIENCE, self.offered_at)
        lost = self.machine.cut()
        try:
            self.after_cut("the control's cut", update, lost)
        except (BoardError, RuntimeError) as error:
            self.board.note(f"control: {what}", lost_sectors=lost["lost"], noticed=str(error)[:600])
        else:
            raise BoardError(f"{what}, and a power cut was survived all the same: the checks see nothing")

    def without_fsync(self) -> None:
        """The control on a good disk, with a station whose `fsync` and `fdatasync` do nothing and say that they did."""
        drop_in = "/etc/systemd/system/cellgate.service.d/control.conf"
        self.machine.run(f"mkdir -p {Path(drop_in).parent} && cat >{drop_in} && sync -f {drop_in} && "
                         "systemctl daemon-reload && systemctl restart cellgate", timeout=600,
                         data=b"[Service]\nSystemCallFilter=~fsync:0 fdatasync:0\n")
        self.control("fsync does nothing")
        self.machine.run(f"rm {drop_in} && sync -f /etc")

    def on_a_lying_disk(self) -> None:
        """The control with a disk that acknowledges flushes and does not do them."""
        self.machine.start(lies=LIES)
        self.machine.wait_up()
        self.control("a disk that lies")

    def fleet_status(self) -> str:
        """What the broker keeps of the station, for whoever looks."""
        said = json.loads(self.cells.call("fleet", "status", "--json", "--host", "127.0.0.1", "--port",
                                          str(self.listener.port)))
        station, = said["stations"]
        if (station["online"], station["state"], station["number"]) != (True, "good", self.in_force):
            raise BoardError(f"`cellgate fleet status` says of the station: {station}")
        return f"{station['line']}/{station['station']} online, version {station['number']} good"

    def stop(self) -> None:
        self.server.stop()
