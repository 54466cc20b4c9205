#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# A trim gives the image's blocks back; zeroes are written as data, so they give nothing back, whether they might or not.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires python3-libnbd

random_file "$dir/disk.img" $((32 << 20))
sync "$dir/disk.img"
probe=$dir/probe
random_file "$probe" $((1 << 20))
sync "$probe"
fallocate -p -o 0 -l $((1 << 20)) "$probe" 2>/dev/null || {
  echo "missing here: a filesystem that can punch holes under $dir"
  exit 77
}
serve "$dir/disk.img"
libnbd "$dir/disk.img" <<'PY'
import os, sys
import nbd
from nbdtools import CAN_TRIM, TRIM_FAILS, connect, flush, trim

image = sys.argv[1]
allocated = lambda: os.stat(image).st_blocks * 512
h = connect()
before = allocated()
trim(h, 8 << 20, 8 << 20)
flush(h)
freed = before - allocated()
if CAN_TRIM and not TRIM_FAILS:
    assert freed >= 7 << 20, f"a trim of 8 MiB freed {freed} bytes"
else:
    assert freed == 0, f"{freed} bytes are gone, and nobody could free them"
h.zero(8 << 20, 16 << 20)
flush(h)
assert h.pread(8 << 20, 16 << 20) == bytes(8 << 20)
assert before - allocated() == freed, "a write of zeroes freed something"
h.zero(4 << 20, 0, nbd.CMD_FLAG_NO_HOLE)
flush(h)
assert h.pread(4 << 20, 0) == bytes(4 << 20)
assert before - allocated() == freed, "a write of zeroes freed something"
# The neighbours are untouched: still as random as they were.
assert any(h.pread(4096, 24 << 20))
assert any(h.pread(4096, (8 << 20) - 4096))
h.shutdown()
PY
stop
