"""Which addresses a command and all processes that it starts try to reach, told by the kernel.

The command runs in a network namespace of its own, which has loopback and no route to anywhere, and
strace writes down the system calls that name an address: also those of programs in other languages,
and those that fail.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

CALLS = "connect,sendto,sendmsg,sendmmsg"
SIOCSIFFLAGS = 0x8914
UP, RUNNING = 0x1, 0x40
ADDRESS = re.compile(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"')
PORT = re.compile(r"sin6?_port=htons\((\d+)\)")
LOOPBACK = re.compile(r"127\.|::1$|::ffff:127\.")


def traced(log: Path) -> list[str]:
    """What starts a command so that its attempts are written to `log`.

    Skips the test where the kernel or the machine cannot do so.
    """
    for program in ("strace", "unshare"):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")
    strace = ["strace", "-f", "-qq", "--seccomp-bpf", "-e", f"trace={CALLS}", "-o", str(log)]
    start = ["unshare", "-rn", sys.executable, __file__, *strace]
    tried = subprocess.run([*start, "true"], capture_output=True, text=True, timeout=30)
    if tried.returncode:
        pytest.skip(f"no network namespaces or no tracing here: {tried.stderr.strip()}")
    return start


def attempts(log: Path) -> list[str]:
    """Every address outside this machine that was tried, as ADDRESS:PORT.

    The port tells the kind: 53 is a question to a name server.
    """
    found = []
    for line in log.read_text(errors="replace").splitlines():
        address = ADDRESS.search(line)
        where = next(filter(None, address.groups())) if address else ""
        if address and not LOOPBACK.match(where):
            port = PORT.search(line)
            found.append(f"{where}:{port[1] if port else '?'}")
    return found


def main() -> None:
    """Switch loopback on, for a new namespace has it off, and become the command."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh", b"lo", UP | RUNNING)
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, request)
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
