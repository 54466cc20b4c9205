#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# What a flush has acknowledged is in the image, even when every process is killed right after it.
# profile: each; without a flush, what was answered is there all the same
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires python3-libnbd

for round in 1 2 3 4 5; do
  serve "$dir/disk.img" --size 32M
  libnbd "$server" "$dir/disk.img" "$round" <<'PY'
import os, random, signal, sys
from nbdtools import connect, flush

server, image, round = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
generator = random.Random(round)
h = connect(strict=False)
size = h.get_size()
model = bytearray(open(image, "rb").read())
for _ in range(100):
    length = generator.choice([1, 512, 4096, 65536, 1 << 20])
    offset = generator.randrange(size - length)
    data = generator.randbytes(length)
    h.pwrite(data, offset)
    model[offset:offset + length] = data
flush(h)
# Later writes may or may not be there, but only where they were meant to go.
loose = h.aio_pwrite(b"\xEE" * 4096, 0)
os.kill(server, signal.SIGKILL)
got = open(image, "rb").read()
assert got[4096:] == bytes(model[4096:]), "an acknowledged and flushed write is not in the image"
assert got[:4096] in (bytes(model[:4096]), b"\xEE" * 4096), "a write was torn"
PY
  reap "$server"
done

# A FUA write is as good as a flush for itself.
serve "$dir/disk.img"
libnbd "$server" "$dir/disk.img" <<'PY'
import os, signal, sys
import nbd
from nbdtools import CAN_FLUSH, connect
h = connect()
h.pwrite(b"\x77" * 65536, 1 << 20, nbd.CMD_FLAG_FUA if CAN_FLUSH else 0)
os.kill(int(sys.argv[1]), signal.SIGKILL)
with open(sys.argv[2], "rb") as image:
    image.seek(1 << 20)
    assert image.read(65536) == b"\x77" * 65536
PY
reap "$server"
