#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# A client that vanishes in the middle of a write changes nothing, and the others are served on.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires python3-libnbd

serve memory:64M
libnbd "$socket" <<'PY'
import os, random, signal, socket, struct, sys
from nbdtools import connect

path = sys.argv[1]
h = connect()
h.pwrite(b"\x42" * (4 << 20), 0)


def raw():
    """A connection of bare bytes, past the handshake."""
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(30)
    s.connect(path)
    greeting = s.recv(18, socket.MSG_WAITALL)
    assert greeting[:16] == b"NBDMAGICIHAVEOPT"
    s.sendall(struct.pack(">I", 3))
    s.sendall(b"IHAVEOPT" + struct.pack(">II", 1, 0))
    assert len(s.recv(10, socket.MSG_WAITALL)) == 10
    return s


def write(cookie, offset, length):
    return struct.pack(">IHHQQI", 0x25609513, 0, 1, cookie, offset, length)


generator = random.Random(7)
cuts = [0, 1, 27, 28, 29, 4096, 100_000, (1 << 20) - 1] + [generator.randrange(1 << 20) for _ in range(60)]
for cut in cuts:
    s = raw()
    message = write(1, 1 << 20, 1 << 20) + b"\x99" * (1 << 20)
    s.sendall(message[:28 + cut] if cut > 29 else message[:cut])
    s.close()
    # Not one sector of an incomplete write; whole writes are another matter, and there is none here.
    assert h.pread(1 << 20, 1 << 20) == b"\x42" * (1 << 20), f"cut after {cut} bytes"

# Requests in flight when the client goes: it reads no answer, and nobody else suffers.
for _ in range(20):
    s = raw()
    for n in range(64):
        s.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, n, n * 65536, 65536))
    s.close()
    assert h.pread(4096, 0) == b"\x42" * 4096

# Real clients, killed.
for _ in range(10):
    child = os.fork()
    if child == 0:
        c = connect()
        while True:
            c.pwrite(b"\x17" * (1 << 20), 32 << 20)
    import time
    time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert h.pread(4096, 0) == b"\x42" * 4096
h.shutdown()
PY
alive "$server" || fail "the server is gone"
stop
