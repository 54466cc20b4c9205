#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# MULTI_CONN keeps its word: what one connection wrote is seen on all of them, and is there after a flush on another one
# and a death. That the flush is not made light of, flush-asks-the-system.sh shows.
# profile: each; the same
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires python3-libnbd

for queues in 1 2; do
  serve "$dir/disk$queues.img" --size 16M --queues $queues
  libnbd "$server" "$dir/disk$queues.img" <<'PY'
import os, signal, sys
from nbdtools import connect, flush

handles = [connect() for _ in range(8)]
assert all(h.can_multi_conn() for h in handles)
for n, h in enumerate(handles):
    h.pwrite(bytes([n + 1]) * 65536, n * 65536)
# Visible everywhere at once.
for h in handles:
    for n in range(8):
        assert h.pread(65536, n * 65536) == bytes([n + 1]) * 65536
flush(handles[5])
os.kill(int(sys.argv[1]), signal.SIGKILL)
PY
  reap "$server"
  for n in 1 2 3 4 5 6 7 8; do
    got=$(dd if="$dir/disk$queues.img" bs=64k skip=$((n - 1)) count=1 status=none | od -An -tu1 -v | tr -s ' \n' '\n' | sort -u | tr -d '\n')
    expect "block $n of the image, $queues queues" "$got" $n
  done
done
