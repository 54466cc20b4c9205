#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# A read-only server says so, refuses every change with EPERM, and leaves the image alone.
# profile: each; some say so in their nodes, one only when it is asked
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires python3-libnbd

random_file "$dir/disk.img" $((8 << 20))
before=$(sum "$dir/disk.img")
chmod 0444 "$dir/disk.img"
serve "$dir/disk.img" --read-only
libnbd <<'PY'
from nbdtools import connect, expect
h = connect(strict=False)
assert h.is_read_only()
for change in (lambda: h.pwrite(bytes(4096), 0), lambda: h.zero(4096, 0), lambda: h.trim(4096, 0)):
    with expect("EPERM"):
        change()
assert len(h.pread(8 << 20, 0)) == 8 << 20
h.shutdown()
PY
# Readers share an image.
serve "$dir/disk.img" --read-only
stop
expect "the image" "$(sum "$dir/disk.img")" "$before"
