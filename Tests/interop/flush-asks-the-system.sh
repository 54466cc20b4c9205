#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# A flush is answered once the system has made durable what was acknowledged on every connection; a FUA write likewise.
# What a process had written is there after its death without that, so system calls are looked at.
# profile: each; barriers where those are what the backend has, and one has none of either
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires python3-libnbd strace

# The tracer is a process of its own (-D): what is started here is the server. A call's line is in the file before the
# one who called goes on.
cat >"$dir/traced" <<SH
#!/bin/sh
exec strace -D -f -qq --seccomp-bpf -e trace=fsync,fdatasync -e signal=none -o "$dir/calls" "$XBD_USER" "\$@"
SH
chmod +x "$dir/traced"
XBD_USER=$dir/traced

for queues in 1 2; do
  serve "$dir/disk$queues.img" --size 16M --queues $queues
  libnbd "$dir/calls" <<'PY'
import re, sys
import nbd
from nbdtools import CAN_FLUSH, connect, flush


def syncs():
    with open(sys.argv[1]) as calls:
        return len(re.findall(r"f(?:data)?sync(?:\(.*\)| resumed>.*\)) += 0", calls.read()))


handles = [connect() for _ in range(4)]
for writer, flusher in zip(handles, handles[1:] + handles[:1]):
    before = syncs()
    writer.pwrite(b"\x33" * 4096, 0)
    assert syncs() == before, "a plain write waits for the disk"
    flush(flusher)
    assert syncs() > before or not CAN_FLUSH, "a flush was answered and the system not asked"
if CAN_FLUSH:
    before = syncs()
    handles[0].pwrite(b"\x44" * 4096, 4096, nbd.CMD_FLAG_FUA)
    assert syncs() > before, "a FUA write was answered and the system not asked"
PY
  stop
done
