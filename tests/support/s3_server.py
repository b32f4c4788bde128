"""A real S3 server on loopback, by moto, behind a proxy that counts requests and damages answers.

with s3_server() as server:
    monkeypatch.setenv(...)          every item of server.environment
    url = server.new_folder()        "s3://BUCKET/NAME", used by nobody else
    server.spoil("cut", times=2)     the next two bodies end half way
    server.requests                  what came through, such as ("GET", "/bucket/name")
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import socket
import sys
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, cast

from moto.server import ThreadedMotoServer

Fault = Literal["cut", "flip", "busy", "forbid"]
Conditions = Literal["kept", "ignored", "unknown"]
REFUSALS = {"busy": (503, "ServiceUnavailable"), "forbid": (403, "AccessDenied")}
"""Status and code of the answers that take the place of a file's content."""
BUCKET = "scans"


class S3Server:
    """The server as its clients see it, through the proxy.

    Attributes:
        endpoint: URL of the proxy.
        environment: What a user would set to reach it; an account, and no file.
        requests: Method and path of every request so far; clear it at will.
        conditions: Whether a conditional write is what it says, a write, or refused as unknown.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.requests: list[tuple[str, str]] = []
        self.conditions: Conditions = "kept"
        self.environment = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            # Nothing of the machine that runs the tests: no account, no proxy.
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def new_folder(self) -> str:
        """URL of an empty folder in the bucket."""
        return f"s3://{BUCKET}/{uuid.uuid4().hex[:8]}"

    def spoil(self, fault: Fault, times: int) -> None:
        """Spoil the next answers that carry a file's content.

        cut: the connection closes half way. flip: one bit is another. busy, forbid: see REFUSALS.
        """
        with self._lock:
            self._faults = [fault] * times

    def next_fault(self) -> Fault | None:
        """What to do to the answer at hand."""
        with self._lock:
            return self._faults.pop() if self._faults else None


@contextlib.contextmanager
def s3_server() -> Iterator[S3Server]:
    """A running server with one empty bucket, scans."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # one line a request otherwise
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    proxy = _Proxy(("127.0.0.1", 0), _Forward)
    proxy.upstream = host, port
    proxy.told = S3Server(f"http://127.0.0.1:{proxy.server_address[1]}")
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        upstream = http.client.HTTPConnection(host, port)
        upstream.request("PUT", f"/{BUCKET}")
        assert upstream.getresponse().status == 200
        upstream.close()
        yield proxy.told
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()
        moto.stop()


def closed_endpoint() -> str:
    """URL of a server that is not there."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    told: S3Server
    upstream: tuple[str, int]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # The server behind compares and writes in two steps.
        self.conditional = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hang up, as killed ones do."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Forward(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _forward(self) -> None:
        proxy = cast(_Proxy, self.server)
        told = proxy.told
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        told.requests.append((self.command, self.path))
        headers = dict(self.headers)
        conditions = {"If-Match", "If-None-Match"} & set(headers)
        if told.conditions == "ignored":
            headers = {name: text for name, text in headers.items() if name not in conditions}
        elif conditions and told.conditions == "unknown":
            self.send_response_only(501)
            content = b"<Error><Code>NotImplemented</Code></Error>"
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            return
        upstream = http.client.HTTPConnection(*proxy.upstream)
        with proxy.conditional if conditions else contextlib.nullcontext():
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            content = answer.read()
        upstream.close()
        status = answer.status
        # The content of files only: a listing is asked for with list-type.
        of_file = self.command == "GET" and status in (200, 206) and "list-type" not in self.path
        fault = told.next_fault() if of_file and content else None
        if fault == "flip":
            content = content[:-1] + bytes([content[-1] ^ 1])
        headers = answer.getheaders()
        if fault in REFUSALS:
            status, code = REFUSALS[fault]
            headers, content = [], f"<Error><Code>{code}</Code></Error>".encode()
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        head = self.command == "HEAD"
        length = answer.getheader("Content-Length", "0") if head else str(len(content))
        self.send_header("Content-Length", length)
        self.end_headers()
        if fault == "cut":
            content = content[: len(content) // 2]
            self.close_connection = True
        self.wfile.write(content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward  # noqa: N815
