#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Requests up to 32 MiB are served; larger ones get an error, and the connection goes on.
# profile: each; many rings of requests for one of a client's
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires python3-libnbd

serve memory:128M
libnbd <<'PY'
import random
from nbdtools import connect, expect, trim

h = connect(strict=False)
generator = random.Random(1)
for length in (1 << 20, (4 << 20) + 512, 16 << 20, 32 << 20):
    data = generator.randbytes(length)
    h.pwrite(data, 12345 * 512)
    assert h.pread(length, 12345 * 512) == data, length
largest = h.get_block_size(2) or 32 << 20
assert largest >= 32 << 20
if largest < 64 << 20:
    with expect("EINVAL|EOVERFLOW|ENOMEM"):
        h.pread(64 << 20, 0)
    with expect("EINVAL|EOVERFLOW|ENOMEM"):
        h.pwrite(bytes(64 << 20), 0)
assert h.pread(32 << 20, 12345 * 512) == data
# Larger than any payload, but without one.
h.zero(100 << 20, 0)
assert h.pread(1 << 20, 50 << 20) == bytes(1 << 20)
trim(h, 100 << 20, 0)
h.shutdown()
PY
stop
