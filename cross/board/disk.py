#!/usr/bin/env python3
"""A disk with a volatile write cache, for the emulated board: an NBD server over one raw image.

What the guest writes lies in memory until it asks for a flush (or writes with FUA), as in a disk's own cache. When
QEMU goes away, however it goes, each sector that was written and not flushed survives or is lost, by a coin, in no
order, and a line of JSON on standard output says how many. That is more than killing QEMU does to a plain image, whose
writes the host's page cache keeps.

With --lies it is a disk as there should be none: it says that a flush is done, and keeps what is younger than so many
seconds in its cache all the same. Checks that are worth something must notice that.

    disk.py IMAGE SOCKET [--seed N] [--lies SECONDS]

Serves one client, one request at a time, and ends with it. The protocol:
https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
"""

import argparse
import itertools
import json
import os
import random
import socket
import struct
import sys
import time

SECTOR = 512
READ, WRITE, DISCONNECT, FLUSH, TRIM, WRITE_ZEROES = 0, 1, 2, 3, 4, 6
FUA = 1
# Has flags, can flush, knows FUA, knows WRITE_ZEROES.
FLAGS = 1 | 1 << 2 | 1 << 3 | 1 << 6
OPTION_EXPORT_NAME, OPTION_ABORT, OPTION_INFO, OPTION_GO = 1, 2, 6, 7
REPLY_ACK, REPLY_INFO, REPLY_UNSUPPORTED = 1, 3, (1 << 31) + 1
EINVAL = 22


class Disk:
    """The image, and the sectors that only lie in the cache."""

    def __init__(self, path: str, seed: int, lies: float = 0):
        self.file = os.open(path, os.O_RDWR)
        self.size = os.fstat(self.file).st_size
        self.cache: dict[int, bytes] = {}
        self.coin = random.Random(seed)
        self.flushes = 0
        self.lies = lies
        # When each sector in the cache was written; the oldest come first.
        self.since: dict[int, float] = {}

    def read(self, offset: int, length: int) -> bytes:
        data = bytearray(os.pread(self.file, length, offset))
        if self.cache:
            for at in range(0, length, SECTOR):
                held = self.cache.get((offset + at) // SECTOR)
                if held is not None:
                    data[at : at + SECTOR] = held
        return bytes(data)

    def write(self, offset: int, data: bytes) -> None:
        for at in range(0, len(data), SECTOR):
            sector = (offset + at) // SECTOR
            self.cache[sector] = data[at : at + SECTOR]
            if self.lies:
                self.since.pop(sector, None)
                self.since[sector] = time.monotonic()

    def keep(self, sectors) -> None:
        """Brings these sectors from the cache to the image."""
        run, start, last = [], None, None
        for sector in sorted(sectors):
            if last is None or sector != last + 1 or len(run) >= 2048:
                if run:
                    os.pwrite(self.file, b"".join(run), start * SECTOR)
                run, start = [], sector
            run.append(self.cache.pop(sector))
            last = sector
        if run:
            os.pwrite(self.file, b"".join(run), start * SECTOR)

    def settle(self, sectors) -> None:
        """What the guest is told to be on the medium from now on."""
        if not self.lies:
            self.keep(sectors)
            return
        before = time.monotonic() - self.lies
        old = list(itertools.takewhile(lambda sector: self.since[sector] < before, self.since))
        for sector in old:
            del self.since[sector]
        self.keep(old)

    def flush(self) -> None:
        self.settle(list(self.cache))
        self.flushes += 1

    def cut(self) -> dict:
        """The power is gone."""
        held = len(self.cache)
        kept = [sector for sector in self.cache if self.coin.random() < 0.5]
        self.keep(kept)
        self.cache.clear()
        return {"unflushed_sectors": held, "lost": held - len(kept), "flushes": self.flushes}


class Gone(Exception):
    """The client has hung up."""


def exactly(client: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        part = client.recv(length - len(data))
        if not part:
            raise Gone
        data += part
    return bytes(data)


def negotiate(client: socket.socket, size: int) -> bool:
    """The fixed newstyle handshake; true when the client goes on to requests."""
    client.sendall(b"NBDMAGIC" + b"IHAVEOPT" + struct.pack(">H", 3))
    no_zeroes = struct.unpack(">I", exactly(client, 4))[0] & 2
    while True:
        _, option, length = struct.unpack(">8sII", exactly(client, 16))
        data = exactly(client, length)

        def reply(kind: int, body: bytes = b"") -> None:
            client.sendall(struct.pack(">QIII", 0x3E889045565A9, option, kind, len(body)) + body)

        if option == OPTION_EXPORT_NAME:
            client.sendall(struct.pack(">QH", size, FLAGS) + (b"" if no_zeroes else bytes(124)))
            return True
        if option in (OPTION_INFO, OPTION_GO):
            del data
            reply(REPLY_INFO, struct.pack(">HQH", 0, size, FLAGS))
            reply(REPLY_INFO, struct.pack(">HIII", 3, SECTOR, 4096, 32 << 20))
            reply(REPLY_ACK)
            if option == OPTION_GO:
                return True
        elif option == OPTION_ABORT:
            reply(REPLY_ACK)
            return False
        else:
            reply(REPLY_UNSUPPORTED)


def serve(client: socket.socket, disk: Disk) -> None:
    while True:
        _, flags, kind, handle, offset, length = struct.unpack(">IHHQQI", exactly(client, 28))
        data = exactly(client, length) if kind == WRITE else b""
        error, answer = 0, b""
        inside = offset + length <= disk.size and offset % SECTOR == 0 and length % SECTOR == 0
        if kind == DISCONNECT:
            return
        if kind == READ and inside:
            answer = disk.read(offset, length)
        elif kind == WRITE and inside:
            disk.write(offset, data)
        elif kind == WRITE_ZEROES and inside:
            disk.write(offset, bytes(length))
        elif kind == FLUSH:
            disk.flush()
        elif kind != TRIM:
            error = EINVAL
        if flags & FUA and not error and kind in (WRITE, WRITE_ZEROES):
            disk.settle(range(offset // SECTOR, (offset + length) // SECTOR))
        client.sendall(struct.pack(">IIQ", 0x67446698, error, handle) + answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image")
    parser.add_argument("socket")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lies", type=float, default=0, metavar="SECONDS")
    args = parser.parse_args()
    disk = Disk(args.image, args.seed, args.lies)

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(args.socket)
    listener.listen(1)
    print("ready", flush=True)
    client, _ = listener.accept()
    try:
        if negotiate(client, disk.size):
            serve(client, disk)
    except (Gone, OSError):
        pass
    finally:
        os.unlink(args.socket)
    print(json.dumps(disk.cut()), flush=True)


if __name__ == "__main__":
    sys.exit(main())
