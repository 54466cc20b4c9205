#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Requests of any offset and length, down to one byte, on 512- and 4,096-byte sectors; neighbours stay untouched.
# profile: each; data, in sectors of each size that the backend has
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires python3-libnbd

large_sectors
for sector in 512 4096; do
  if [ $sector = 512 ]; then
    serve memory:4M
  else
    [ ${#large[@]} -gt 0 ] || continue
    serve memory:4M "${large[@]}"
  fi
  libnbd <<'PY'
import random
from nbdtools import connect

h = connect(strict=False)
size = h.get_size()
seed = random.randrange(1 << 32)
generator = random.Random(seed)
model = bytearray(generator.randbytes(size))
for at in range(0, size, 1 << 20):
    h.pwrite(bytes(model[at:at + (1 << 20)]), at)


def change(offset, length):
    kind = generator.randrange(4)
    if kind == 0:
        h.zero(length, offset)
        model[offset:offset + length] = bytes(length)
    else:
        data = generator.randbytes(length)
        h.pwrite(data, offset)
        model[offset:offset + length] = data


for offset, length in [(0, 1), (1, 1), (511, 1), (511, 2), (512, 1), (4095, 2), (size - 1, 1), (1, 65535), (4097, 4096)]:
    change(offset, length)
    assert h.pread(length, offset) == model[offset:offset + length], (seed, offset, length)
for _ in range(1500):
    length = generator.choice([1, 2, 3, 511, 513, 4095, 4097, generator.randrange(1, 100000)])
    offset = generator.randrange(size - length)
    change(offset, length)
    if generator.randrange(4) == 0:
        start = generator.randrange(size - length)
        assert h.pread(length, start) == model[start:start + length], (seed, start, length)
got = b"".join(h.pread(1 << 20, at) for at in range(0, size, 1 << 20))
assert got == bytes(model), f"seed {seed}"
h.shutdown()

# Two writers of different bytes of one sector: both survive.
a, b = connect(strict=False), connect(strict=False)
for _ in range(200):
    jobs = [(a, a.aio_pwrite(b"a", 1000)), (b, b.aio_pwrite(b"b", 1001))]
    for handle, cookie in jobs:
        while not handle.aio_command_completed(cookie):
            handle.poll(1000)
    assert a.pread(2, 1000) == b"ab"
    a.pwrite(b"..", 1000)
PY
  stop
done
