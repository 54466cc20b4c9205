#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Requests past the end get the protocol's errors, change nothing, and leave the connection usable.
# profile: each; no such request may reach a backend
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires python3-libnbd

serve "$dir/disk.img" --size 1M
libnbd <<'PY'
from nbdtools import connect, expect
h = connect(strict=False)
size = h.get_size()
h.pwrite(b"\x11" * size, 0)
for offset, length in [(size, 512), (size - 512, 1024), (size - 1, 2), (size + (1 << 40), 512), ((1 << 64) - 512, 512), ((1 << 64) - 512, 4096)]:
    with expect("EINVAL"):
        h.pread(length, offset)
    # An end that 64 bits cannot say is no place beyond the end but a malformed request.
    with expect("ENOSPC" if offset + length < 1 << 63 else "ENOSPC|EINVAL"):
        h.pwrite(b"\x22" * length, offset)
    with expect("ENOSPC|EINVAL"):
        h.zero(length, offset)
    with expect("ENOSPC|EINVAL"):
        h.trim(length, offset)
assert h.pread(size, 0) == b"\x11" * size
h.shutdown()
PY
stop
expect "the image's size" "$(stat -c %s "$dir/disk.img")" $((1 << 20))
