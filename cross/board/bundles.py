"""A server of bundles over HTTPS, with an authority of its own, as a plant would have one."""

import http.server
import re
import ssl
import subprocess
import threading
from pathlib import Path


def certify(folder: Path, address: str) -> None:
    """Makes `ca.pem`, and `server.pem` with its key for this address, signed by it."""
    def openssl(*args: str) -> None:
        done = subprocess.run(["openssl", *args], cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"openssl {' '.join(args)}: {done.stderr.strip()}")

    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "3650")
    openssl(*new, "-subj", "/CN=the board's authority", "-keyout", "ca.key", "-out", "ca.pem")
    openssl(*new, "-subj", "/CN=bundles", "-keyout", "server.key", "-out", "server.pem",
            "-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE",
            "-addext", f"subjectAltName=IP:{address}")


class Handler(http.server.BaseHTTPRequestHandler):
    """Sends a file of the server's folder, from any byte on."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.server.folder / Path(self.path).name
        if not path.is_file():
            self.send_error(404)
            return
        body = path.read_bytes()
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = min(int(found[1]), len(body)) if found else 0
        self.server.starts.append(start)
        self.send_response(206 if found else 200)
        if found:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body[start:])

    def log_message(self, *_) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    """Serves the files of a folder on a port of this machine."""

    daemon_threads = True

    def __init__(self, folder: Path, certificate: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        # The byte with which each download began.
        self.starts: list[int] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        # A client that goes away in the midst of the handshake holds up its own thread alone.
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_) -> None:
        """The client's power is cut now and then."""

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
