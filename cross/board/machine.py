"""The emulated board as a machine: QEMU with its disk, its network, its screen and its power switch."""

import json
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
# The host as the guest sees it.
HOST = "10.0.2.2"
# The board's clock goes by what it has computed, 2 ns an instruction, and never faster than this machine's: where this
# machine is busy the board is slow all over, camera and all, instead of losing frames and missing its watchdog.
CLOCK = "shift=1,sleep=on,align=off"


class BoardError(Exception):
    """The board did not do what it must."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(what: str, timeout: float, condition, every: float = 0.2):
    """What `condition` returns once it is neither None nor False."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        result = condition()
        if result is not None and result is not False:
            return result
        time.sleep(every)
    raise BoardError(f"{what}: not within {timeout:.0f} s")


@dataclass
class Picture:
    """Red, green and blue, row by row."""

    width: int
    height: int
    pixels: bytes

    def at(self, x: int, y: int) -> bytes:
        start = 3 * (y * self.width + x)
        return self.pixels[start : start + 3]

    def write_png(self, path: Path) -> None:
        row = 3 * self.width
        rows = b"".join(b"\0" + self.pixels[y * row : (y + 1) * row] for y in range(self.height))
        header = struct.pack(">IIBBBBB", self.width, self.height, 8, 2, 0, 0, 0)
        with open(path, "wb") as file:
            file.write(b"\x89PNG\r\n\x1a\n")
            for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")):
                file.write(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)))


class Machine:
    """One board. `folder` holds its disk `root.img`, its logs and its sockets."""

    def __init__(self, made: Path, folder: Path, seed: int):
        self.made, self.folder, self.seed = made, folder, seed
        self.image = folder / "root.img"
        self.ssh_port = free_port()
        self.starts = 0
        self.qemu = self.disk = None

    def new_disk(self) -> None:
        subprocess.run(["cp", "--sparse=always", self.made / "base.img", self.image], check=True)

    def log(self) -> Path:
        return self.folder / f"serial-{self.starts:02}.log"

    def start(self, lies: float = 0) -> None:
        """Switches the power on; `lies`: seconds for which the disk holds back what it was told to flush."""
        self.starts += 1
        disk_socket, control = self.folder / "disk.sock", self.folder / "qmp.sock"
        for path in (disk_socket, control):
            path.unlink(missing_ok=True)
        self.disk = subprocess.Popen(
            [sys.executable, HERE / "disk.py", self.image, disk_socket, "--seed", str(self.seed + self.starts),
             "--lies", str(lies)],
            stdout=subprocess.PIPE, text=True)
        if self.disk.stdout.readline().strip() != "ready":
            raise BoardError("disk.py did not start")
        kernel = next((self.made / "kernel" / "boot").glob("vmlinuz-*"))
        self.qemu = subprocess.Popen(
            ["qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a72", "-accel", "tcg,thread=single", "-icount", CLOCK,
             "-rtc", "clock=vm", "-smp", "2", "-m", "1024", "-display", "none",
             "-no-reboot", "-kernel", kernel, "-initrd", self.made / "initrd.img",
             "-append", "console=ttyAMA0 loglevel=5 net.ifnames=0 fbcon=map:9 vt.global_cursor_default=0 "
             "systemd.show_status=0 systemd.log_target=kmsg",
             "-blockdev", f"driver=nbd,node-name=root,server.type=unix,server.path={disk_socket}",
             "-device", "virtio-blk-pci,drive=root,write-cache=on",
             "-device", "virtio-gpu-pci,xres=800,yres=480", "-device", "virtio-rng-pci",
             "-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{self.ssh_port}-:22",
             "-device", "virtio-net-pci,netdev=net",
             "-serial", f"file:{self.log()}", "-monitor", "none", "-qmp", f"unix:{control},server=on,wait=off"],
            stdin=subprocess.DEVNULL)

    def control(self, command: str, **arguments) -> None:
        """Says something to QEMU's monitor."""
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(60)
            monitor.connect(str(self.folder / "qmp.sock"))
            lines = monitor.makefile("rw")
            lines.readline()
            for name, values in (("qmp_capabilities", {}), (command, arguments)):
                lines.write(json.dumps({"execute": name, "arguments": values}) + "\n")
                lines.flush()
                while "event" in (answer := json.loads(lines.readline())):
                    pass
                if "error" in answer:
                    raise BoardError(f"QEMU's monitor, {name}: {answer['error']['desc']}")

    def screenshot(self, path: Path) -> Picture:
        """What the board's screen shows, kept as a PNG too."""
        raw = self.folder / "screen.ppm"
        self.control("screendump", filename=str(raw))
        magic, size, white, pixels = raw.read_bytes().split(b"\n", 3)
        raw.unlink()
        width, height = map(int, size.split())
        if (magic, white) != (b"P6", b"255") or len(pixels) != 3 * width * height:
            raise BoardError("QEMU's screendump is no PPM")
        picture = Picture(width, height, pixels)
        picture.write_png(path)
        return picture

    def ssh_command(self) -> list[str]:
        return ["ssh", "-q", "-i", str(self.made / "key"), "-p", str(self.ssh_port), "-o", "StrictHostKeyChecking=no",
                "-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=20", "-o", "BatchMode=yes",
                # One handshake a start: it takes the board seconds.
                "-o", "ControlMaster=auto", "-o", "ControlPersist=yes",
                "-o", f"ControlPath={self.folder}/ssh-{self.starts}.sock", "root@127.0.0.1"]

    def run(self, command: str, timeout: float = 180, data: bytes = b"", check: bool = True) -> str:
        """Runs a command on the board, with `data` as its standard input; what it writes."""
        try:
            done = subprocess.run([*self.ssh_command(), command], input=data, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, timeout=timeout, check=False)
        except subprocess.TimeoutExpired:
            raise BoardError(f"on the board, {command}: no end within {timeout} s") from None
        text = done.stdout.decode(errors="replace").strip()
        if check and done.returncode:
            raise BoardError(f"on the board, {command}: status {done.returncode}: {text}")
        return text

    def put_folder(self, folder: Path, to: str) -> None:
        """A copy of the folder's files, flushed to the disk."""
        packed = subprocess.run(["tar", "-C", folder, "-cz", "."], stdout=subprocess.PIPE, check=True).stdout
        self.run(f"mkdir -p {to} && tar -C {to} -xz --no-same-owner && sync -f {to}", data=packed, timeout=600)

    def wait_up(self, timeout: float = 600) -> float:
        """Waits until the board can be reached; seconds that took."""
        begin = time.monotonic()

        def reached():
            if self.qemu.poll() is not None:
                raise BoardError(f"QEMU ended while the board started, see {self.log()}")
            try:
                return self.run("true", timeout=60, check=True) == ""
            except BoardError:
                return None

        wait_for("the board's start", timeout, reached, every=1)
        return time.monotonic() - begin

    def cut(self) -> dict:
        """Takes the power away: what the disk had in its cache is lost, sector by sector, by a coin."""
        self.qemu.send_signal(signal.SIGKILL)
        self.qemu.wait()
        result = json.loads(self.disk.communicate(timeout=60)[0])
        self.qemu = self.disk = None
        return result

    def shut_down(self) -> dict:
        """Ends the board in order."""
        self.run("systemctl poweroff", check=False)
        self.qemu.wait(timeout=180)
        result = json.loads(self.disk.communicate(timeout=60)[0])
        self.qemu = self.disk = None
        return result

    def stop(self) -> None:
        """Whatever state it is in."""
        for process in (self.qemu, self.disk):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()

    def check_disk(self, take: str, to: Path) -> str:
        """Of a board without power, on a copy of its disk: replays the journal, looks at the whole file system, and
        copies the folder `take` into `to`. What the replay said; raises if the file system is not clean after it."""
        copy = self.folder / "check.img"
        subprocess.run(["cp", "--sparse=always", self.image, copy], check=True)
        try:
            fsck = shutil.which("e2fsck") or "/sbin/e2fsck"
            # Replaying the journal alone, nothing is repaired.
            replay = subprocess.run([fsck, "-E", "journal_only", "-y", copy], capture_output=True, text=True,
                                    check=False)
            look = subprocess.run([fsck, "-fn", copy], capture_output=True, text=True, check=False)
            if look.returncode:
                raise BoardError("the file system is damaged after the replay of its journal: "
                                 f"{look.stdout}{look.stderr}")
            shutil.rmtree(to, ignore_errors=True)
            to.mkdir()
            debugfs = shutil.which("debugfs") or "/sbin/debugfs"
            subprocess.run([debugfs, "-R", f"rdump {take} {to}", copy], capture_output=True, check=False)
            return replay.stdout.strip().replace("\n", "; ")
        finally:
            copy.unlink()


class Listener:
    """A broker on this machine, and somebody who hears all that the station says there."""

    def __init__(self, folder: Path, station: str):
        self.port = free_port()
        self.messages: list[tuple[float, str, str]] = []
        self.heard = threading.Condition()
        settings = folder / "mosquitto.conf"
        settings.write_text(f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
        broker = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
        self.broker = subprocess.Popen([broker, "-c", settings], stdout=subprocess.DEVNULL,
                                       stderr=open(folder / "mosquitto.log", "w"))
        wait_for("the broker's start", 20, self.listens)
        self.client = subprocess.Popen(
            ["mosquitto_sub", "-h", "127.0.0.1", "-p", str(self.port), "-q", "1", "-t", f"{station}/#", "-F", "%t %p"],
            stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self.listen, daemon=True).start()

    def listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def listen(self) -> None:
        for line in self.client.stdout:
            topic, _, text = line.rstrip("\n").partition(" ")
            with self.heard:
                self.messages.append((time.monotonic(), topic.rpartition("/")[2], text))
                self.heard.notify_all()

    def said(self, kind: str, since: int = 0, until: int | None = None) -> list[dict]:
        """What came on this topic, in its order, from message `since` on and before message `until`."""
        with self.heard:
            return [json.loads(text) for _, topic, text in self.messages[since:until] if topic == kind]

    def verdicts(self, since: int = 0, until: int | None = None) -> list[dict]:
        """The verdicts in the order in which they came."""
        return self.said("verdict", since, until)

    def mark(self) -> int:
        """Number of the next message."""
        with self.heard:
            return len(self.messages)

    def has_heard(self, since: int, holds) -> bool:
        """Whether `holds(topic, message)` of a verdict or a report of updates, from message `since` on."""
        return any(holds(topic, said) for topic in ("verdict", "update") for said in self.said(topic, since))

    def wait_for(self, what: str, timeout: float, since: int, holds) -> tuple[int, str, dict]:
        """The same, waited for: number, topic and text of the first such message."""
        end, at = time.monotonic() + timeout, since
        with self.heard:
            while True:
                while at < len(self.messages):
                    _, topic, text = self.messages[at]
                    if topic in ("verdict", "update") and holds(topic, message := json.loads(text)):
                        return at, topic, message
                    at += 1
                left = end - time.monotonic()
                if left <= 0:
                    reports = [text for _, topic, text in self.messages[since:] if topic == "update"]
                    raise BoardError(f"{what}: not heard within {timeout:.0f} s; the last report: {reports[-1:]}")
                self.heard.wait(left)

    def wait_for_verdicts(self, count: int, timeout: float, since: int = 0, which=lambda verdict: True) -> list[dict]:
        end = time.monotonic() + timeout
        with self.heard:
            while True:
                found = [json.loads(text) for _, topic, text in self.messages[since:] if topic == "verdict"]
                found = [verdict for verdict in found if which(verdict)]
                if len(found) >= count:
                    return found
                left = end - time.monotonic()
                if left <= 0:
                    raise BoardError(f"{len(found)} of {count} verdicts came within {timeout:.0f} s")
                self.heard.wait(left)

    def stop(self) -> None:
        for process in (self.client, self.broker):
            process.terminate()
            process.wait()
