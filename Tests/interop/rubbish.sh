#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Rubbish at any byte of the handshake or of a request closes that connection and no other.
# profile: default; what is no request reaches no backend
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires python3-libnbd

serve memory:16M
libnbd "$socket" <<'PY'
import random, socket, struct, sys
from nbdtools import connect

path = sys.argv[1]
seed = random.randrange(1 << 32)
generator = random.Random(seed)
h = connect()
h.pwrite(b"\x42" * 65536, 0)

option = lambda number, data=b"": b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data
go = option(7, struct.pack(">IH", 0, 0))
session = (
    struct.pack(">I", 3) + option(8) + option(3) + go
    + struct.pack(">IHHQQI", 0x25609513, 0, 0, 1, 0, 4096)
    + struct.pack(">IHHQQI", 0x25609513, 0, 2, 2, 0, 0)
)


def talk(data):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(30)
    s.connect(path)
    try:
        s.sendall(data)
        s.shutdown(socket.SHUT_WR)
        # It must answer or close, not wait for ever.
        while s.recv(65536):
            pass
    except (BrokenPipeError, ConnectionResetError):
        pass
    except TimeoutError:
        raise AssertionError(f"the server neither answers nor closes (seed {seed}): {data.hex()}")
    finally:
        s.close()


for at in range(len(session)):
    talk(session[:at])
    broken = bytearray(session)
    broken[at] ^= 1 << generator.randrange(8)
    # A flipped bit must not turn the read into a change of the disk.
    if broken[len(session) - 56 + 7] not in (1, 4, 6):
        talk(bytes(broken))
for _ in range(300):
    talk(generator.randbytes(generator.randrange(1, 600)))
    talk(session[:generator.randrange(len(session))] + generator.randbytes(generator.randrange(200)))
talk(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 7, 0xFFFFFFFF))
assert h.pread(65536, 0) == b"\x42" * 65536, f"seed {seed}"
connect().shutdown()
h.shutdown()
PY
alive "$server" || fail "the server is gone"
stop
