"""Power cuts fall before and after the switch, and a download goes on where it broke off; else they would prove little.

    python3 -m unittest discover -s cross/board
"""

import shutil
import ssl
import tempfile
import unittest
import urllib.request
from pathlib import Path

from bundles import Server, certify
from updates import MOMENTS, Update, moments, versions

SWITCH = [name for name, _, _ in MOMENTS].index("the switch: the last frame of the shadow is judged")


def report(**fields) -> dict:
    return {"state": "good", "number": 1, "offered": None, "progress": None, "shadow": None, **fields}


class Moments(unittest.TestCase):
    def test_any_number_of_cuts_is_spread_over_the_update_and_two_lie_on_both_sides_of_the_switch(self):
        for count in range(2, 25):
            chosen = [MOMENTS.index(moment) for moment in moments(count)]
            self.assertEqual(len(chosen), count)
            self.assertTrue(min(chosen) < SWITCH < max(chosen), chosen)
            self.assertLess(sum(later < earlier for earlier, later in zip(chosen, chosen[1:])), versions(count))
        self.assertEqual(moments(10), list(MOMENTS))

    def test_each_moment_is_known_by_what_the_station_says_and_not_by_what_it_says_of_another_version(self):
        update = Update(2, "new")
        said = [
            report(state="download", offered=2, progress=0.36),
            report(state="download", offered=2, progress=0.71),
            report(state="stage", offered=2),
            report(state="prove", offered=2),
            report(state="shadow", offered=2, shadow={"frames": 2}),
            report(state="shadow", offered=2, shadow={"frames": 8}),
            {"model": "new"},
            report(state="probation", number=2, offered=2, progress=0.0),
            report(state="probation", number=2, offered=2, progress=0.5),
            report(number=2),
        ]
        for (name, holds, _), message in zip(MOMENTS, said, strict=True):
            topic = "verdict" if "model" in message else "update"
            self.assertTrue(holds(update, topic, message), name)
            self.assertFalse(holds(Update(3, "newer"), topic, message), name)


@unittest.skipUnless(shutil.which("openssl"), "apt-get install openssl")
class Bundles(unittest.TestCase):
    def test_a_download_goes_on_from_any_byte_under_a_certificate_of_the_authority(self):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            certify(folder, "127.0.0.1")
            (folder / "1.cgb").write_bytes(bytes(range(200)))
            server = Server(folder, folder / "server.pem")
            trust = ssl.create_default_context(cafile=folder / "ca.pem")
            address = f"https://127.0.0.1:{server.server_port}/1.cgb"
            for start in (0, 150):
                asked = urllib.request.Request(address, headers={"Range": f"bytes={start}-"})
                with urllib.request.urlopen(asked, context=trust) as answer:
                    self.assertEqual(answer.headers["Content-Range"], f"bytes {start}-199/200")
                    self.assertEqual(answer.read(), bytes(range(start, 200)))
            server.stop()
            self.assertEqual(server.starts, [0, 150])


if __name__ == "__main__":
    unittest.main()
