"""A small proxy before an S3 server, that counts requests and spoils some of the answers."""

import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)
_HOP_HEADERS = {"connection", "transfer-encoding", "content-length"}


@dataclass
class S3Proxy:
    """fault(method, path) names what happens to a request: None, or

    `slow_down`, `reset`; `cut`: half a body, said to be all of it;
    `half_body`: the connection ends in the middle; `after_reset`: the server acts, but its answer is lost.
    """

    endpoint: str
    fault: Callable[[str, str], str | None] = lambda method, path: None
    requests: list[tuple[str, str]] = field(default_factory=list)


@contextmanager
def run_s3_proxy(upstream: str) -> Iterator[S3Proxy]:
    """Listens on a free port and forwards to `upstream`."""
    proxy = S3Proxy("")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _make_handler(proxy, urlsplit(upstream).netloc))
    server.daemon_threads = True
    proxy.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _make_handler(proxy: S3Proxy, upstream: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _forward(self) -> None:
            body = self._read_body()
            proxy.requests.append((self.command, self.path))
            fault = proxy.fault(self.command, self.path)
            if fault == "reset":
                return self._reset()
            if fault == "slow_down":
                return self._answer(503, "Slow Down", [("Content-Type", "application/xml")], SLOW_DOWN)
            connection = http.client.HTTPConnection(upstream, timeout=60)
            # Headers as they came: the signature covers Host, which names this proxy.
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() != "connection":
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            data = answer.read()
            headers = [(n, v) for n, v in answer.getheaders() if n.lower() not in _HOP_HEADERS]
            length = answer.getheader("Content-Length") if self.command == "HEAD" else None
            connection.close()
            if fault == "after_reset":
                return self._reset()
            if fault == "cut":
                return self._answer(answer.status, answer.reason, headers, data[: len(data) // 2])
            if fault == "half_body" and self.command != "HEAD":
                return self._answer(answer.status, answer.reason, headers, data, data[: len(data) // 2])
            return self._answer(answer.status, answer.reason, headers, data, None, length)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward

        def _read_body(self) -> bytes:
            """The body as it is on the wire, chunk marks and all."""
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while True:
                line = self.rfile.readline()
                size = int(line.split(b";")[0], 16)
                parts += [line, self.rfile.read(size + 2)]
                if not size:
                    return b"".join(parts)

        def _answer(
            self, status: int, reason: str, headers: list[tuple[str, str]], data: bytes,
            sent: bytes | None = None, length: str | None = None,
        ) -> None:  # fmt: skip
            self.send_response_only(status, reason)
            for name, value in headers:
                self.send_header(name, value)
            if status != 204:
                self.send_header("Content-Length", length or str(len(data)))
            self.end_headers()
            with suppress(ConnectionError):  # the client gave up
                if self.command != "HEAD":
                    self.wfile.write(data if sent is None else sent)
                if sent is not None:
                    self._reset()

        def _reset(self) -> None:
            self.close_connection = True
            with suppress(OSError):
                # shutdown, not close: the handler's files still hold the socket.
                self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, *args: object) -> None:
            pass

    return Handler
