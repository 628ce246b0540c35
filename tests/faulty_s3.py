"""A proxy before a real S3 server that spoils some answers: SLOW_DOWN, resets, half bodies, answers lost on the way."""

import http.client
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = ("slow_down", "reset_before", "reset_after", "half_body")
_SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, backend: str, share: float, seed: int):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.backend, self.share = backend, share
        self.injected: Counter[str] = Counter()
        self._random, self._lock = random.Random(seed), threading.Lock()

    def draw_fault(self, method: str) -> str | None:
        with self._lock:
            if self._random.random() >= self.share:
                return None
            fault = self._random.choice(FAULTS if method == "GET" else FAULTS[:3])
            self.injected[fault] += 1
            return fault

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is none of our business."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Proxy

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.draw_fault(self.command)
        if fault == "slow_down":
            return self._answer(503, [("Content-Type", "application/xml")], _SLOW_DOWN, len(_SLOW_DOWN))
        if fault == "reset_before":
            return self._reset()
        connection = http.client.HTTPConnection(self.server.backend, timeout=60)
        # Host goes on as it is: the client has signed it.
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        data = response.read()
        connection.close()
        if fault == "reset_after":
            return self._reset()
        length = int(response.headers.get("Content-Length") or len(data))
        half = fault == "half_body" and len(data) > 1
        self._answer(response.status, response.headers.items(), data[: len(data) // 2] if half else data, length)
        if half:
            self._reset()

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _forward

    def _answer(self, status: int, headers: object, data: bytes, length: int) -> None:
        self.send_response_only(status)
        for name, value in headers:  # type: ignore[attr-defined]
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _reset(self) -> None:
        """RST in place of FIN."""
        self.close_connection = True
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def serve_faulty(backend: str, share: float, seed: int = 0) -> Iterator[tuple[str, Counter[str]]]:
    """Yields (http://host:port of the proxy, what it has injected). backend: host:port. share: of the requests."""
    proxy = _Proxy(backend, share, seed)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{proxy.server_port}", proxy.injected
    finally:
        proxy.shutdown()
        proxy.server_close()
