"""The board's disk keeps what was flushed and may lose the rest; else its power cuts would prove nothing.

    python3 -m unittest discover -s cross/board
"""

import socket
import struct
import tempfile
import threading
import unittest

from disk import DISCONNECT, FLUSH, FUA, READ, SECTOR, WRITE, WRITE_ZEROES, Disk, Gone, negotiate, serve

SIZE = 1 << 20


class Client:
    """Speaks NBD with a disk, as QEMU does."""

    def __init__(self, disk: Disk):
        self.socket, far = socket.socketpair()
        self.server = threading.Thread(target=self.serve, args=(far, disk))
        self.server.start()
        self.socket.recv(18)
        # The fixed handshake without zeroes, then OPTION_GO for the export without a name.
        self.socket.sendall(struct.pack(">I", 3) + struct.pack(">8sIIIH", b"IHAVEOPT", 7, 6, 0, 0))
        for length in (20 + 12, 20 + 14, 20):
            self.exactly(length)

    @staticmethod
    def serve(far: socket.socket, disk: Disk) -> None:
        with far:
            try:
                if negotiate(far, disk.size):
                    serve(far, disk)
            except Gone:
                pass

    def exactly(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            data += self.socket.recv(length - len(data))
        return data

    def ask(self, kind: int, offset: int = 0, length: int = 0, data: bytes = b"", flags: int = 0) -> tuple[int, bytes]:
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, flags, kind, 77, offset, length or len(data)) + data)
        magic, error, handle = struct.unpack(">IIQ", self.exactly(16))
        assert (magic, handle) == (0x67446698, 77)
        return error, self.exactly(length) if kind == READ and not error else b""

    def hang_up(self) -> None:
        self.socket.close()
        self.server.join()


class PowerCuts(unittest.TestCase):
    def setUp(self):
        self.file = tempfile.NamedTemporaryFile()
        self.file.truncate(SIZE)
        self.disk = Disk(self.file.name, seed=1)
        self.client = Client(self.disk)

    def tearDown(self):
        self.file.close()

    def medium(self) -> list[bytes]:
        with open(self.file.name, "rb") as file:
            data = file.read()
        return [data[at : at + SECTOR] for at in range(0, SIZE, SECTOR)]

    def test_what_was_flushed_survives_and_the_rest_by_a_coin(self):
        old, new = b"o" * SECTOR, b"n" * SECTOR
        self.client.ask(WRITE, 0, data=old * 1000)
        self.client.ask(FLUSH)
        self.client.ask(WRITE, 0, data=new * 600)
        self.client.hang_up()
        cut = self.disk.cut()
        medium = self.medium()
        self.assertEqual(set(medium[:600]), {old, new})
        self.assertEqual(set(medium[600:1000]), {old})
        self.assertEqual(cut, {"unflushed_sectors": 600, "lost": medium.count(old) - 400, "flushes": 1})
        self.assertTrue(200 < cut["lost"] < 400)

    def test_a_write_with_fua_survives_and_those_before_it_need_not(self):
        self.client.ask(WRITE, 0, data=b"a" * SECTOR * 64)
        self.client.ask(WRITE, 64 * SECTOR, data=b"b" * SECTOR * 64, flags=FUA)
        self.client.hang_up()
        self.assertEqual(self.disk.cut()["unflushed_sectors"], 64)
        self.assertEqual(set(self.medium()[64:128]), {b"b" * SECTOR})

    def test_what_is_written_is_read_before_it_is_flushed(self):
        self.client.ask(WRITE, SECTOR, data=b"x" * SECTOR * 4)
        self.client.ask(WRITE_ZEROES, 2 * SECTOR, length=SECTOR)
        error, data = self.client.ask(READ, 0, length=6 * SECTOR)
        zero, full = bytes(SECTOR), b"x" * SECTOR
        self.assertEqual((error, data), (0, zero + full + zero + full + full + zero))
        self.assertEqual(set(self.medium()), {zero})
        self.client.hang_up()

    def test_a_disk_that_lies_loses_what_it_said_to_be_flushed_and_keeps_what_is_old(self):
        self.disk.lies = 3600.0
        self.client.ask(WRITE, 0, data=b"a" * SECTOR * 100)
        self.client.ask(WRITE, 100 * SECTOR, data=b"b" * SECTOR * 100, flags=FUA)
        self.client.ask(FLUSH)
        self.assertEqual(set(self.medium()), {bytes(SECTOR)})
        for sector in range(50):
            self.disk.since[sector] = 0.0
        self.disk.since = dict(sorted(self.disk.since.items(), key=lambda item: item[1]))
        self.client.ask(FLUSH)
        self.client.hang_up()
        self.assertEqual(set(self.medium()[:50]), {b"a" * SECTOR})
        self.assertEqual(self.disk.cut()["unflushed_sectors"], 150)
        self.assertEqual(set(self.medium()[100:200]), {bytes(SECTOR), b"b" * SECTOR})

    def test_what_lies_beyond_the_end_is_refused(self):
        self.assertNotEqual(self.client.ask(WRITE, SIZE, data=b"x" * SECTOR)[0], 0)
        self.assertNotEqual(self.client.ask(READ, SIZE - SECTOR, length=2 * SECTOR)[0], 0)
        self.client.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, DISCONNECT, 1, 0, 0))
        self.client.hang_up()


if __name__ == "__main__":
    unittest.main()
