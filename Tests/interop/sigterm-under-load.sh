#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# SIGTERM under load: what is in flight is answered, what was acknowledged is in the image, the status is 0.
# profile: each; closing under load, and to backends that do not come back
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires python3-libnbd

for round in 1 2 3; do
  serve "$dir/disk.img" --size 64M
  libnbd "$server" "$dir/disk.img" <<'PY'
import os, signal, sys
import nbd
from nbdtools import connect

server, image = int(sys.argv[1]), sys.argv[2]
h = connect()
acknowledged = {}
pending = {}
n = 0
try:
    while True:
        while len(pending) < 16:
            n += 1
            block = n % 1024
            if any(b == block for b, _ in pending.values()):
                continue
            data = n.to_bytes(8, "little") * 8192
            pending[h.aio_pwrite(data, block * 65536)] = (block, data)
        h.poll(1000)
        for cookie in list(pending):
            if h.aio_command_completed(cookie):
                block, data = pending.pop(cookie)
                acknowledged[block] = data
        if n == 3000:
            os.kill(server, signal.SIGTERM)
        assert n < 200_000, "the server goes on serving after SIGTERM"
except nbd.Error:
    pass
# Some may have been answered with ESHUTDOWN, some not at all; those blocks may hold either content.
unsure = {block for block, _ in pending.values()}
for _ in range(600):
    if not os.path.exists(f"/proc/{server}") or open(f"/proc/{server}/stat").read().split(")")[1].split()[0] == "Z":
        break
    import time
    time.sleep(0.1)
content = open(image, "rb").read()
for block, data in acknowledged.items():
    if block not in unsure:
        assert content[block * 65536:(block + 1) * 65536] == data, f"block {block} was acknowledged and is not there"
assert len(acknowledged) > 900
PY
  reap "$server"
  expect "status, round $round" "$status" 0
  [ ! -e "$socket" ] || fail "the socket was left behind"
done
