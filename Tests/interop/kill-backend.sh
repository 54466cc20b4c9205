#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# timeout: 300
# A backend that is killed in the middle of I/O: every request in flight ends with an error, the server says who died
# and how, and the image holds what was written and nothing else.
# backend: own; it is about backends in processes of their own
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires python3-libnbd /usr/libexec/xen-qemu-system-i386

for backend in qemu process; do
  serve "$dir/$backend.img" --size 32M
  for round in 1 2 3; do
    child=$(pgrep -P "$server")
    libnbd "$child" "$dir/$backend.img" "$round" <<'PY'
import os, random, signal, sys, time
import nbd
from nbdtools import connect

child, image, round = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
seed = int(os.environ.get("XBD_SEED", random.randrange(1 << 32)))
print(f"XBD_SEED={seed}", flush=True)
generator = random.Random(seed)
BLOCK = 32768
with open(image, "rb") as file:
    content = file.read()
blocks = len(content) // BLOCK
# What each block may hold: what it held, and every write to it that was not answered.
may = [{content[n * BLOCK:(n + 1) * BLOCK]} for n in range(blocks)]
handle = connect()
pending = {}
answered = 0
killed = None
while True:
    try:
        while len(pending) < 24:
            n = generator.randrange(blocks)
            if any(n == busy for busy, *_ in pending.values()):
                continue
            if generator.randrange(2):
                data = generator.randbytes(8) * (BLOCK // 8)
                pending[handle.aio_pwrite(data, n * BLOCK)] = (n, data, None)
            else:
                buffer = nbd.Buffer(BLOCK)
                pending[handle.aio_pread(buffer, n * BLOCK)] = (n, None, buffer)
        handle.poll(1000)
    except nbd.Error:
        assert killed, f"an error before anything was killed (seed {seed})"
        break
    for cookie in list(pending):
        n, data, buffer = pending[cookie]
        try:
            if not handle.aio_command_completed(cookie):
                continue
        except nbd.Error:
            assert killed, f"an error before anything was killed (seed {seed})"
            # Nobody knows how far it came.
            if data:
                may[n].add(data)
            del pending[cookie]
            continue
        answered += 1
        if data:
            may[n] = {data}
        else:
            assert bytes(buffer.to_bytearray()) in may[n], f"a wrong byte in block {n} (seed {seed})"
        del pending[cookie]
    if killed is None and answered > 500 + generator.randrange(2000):
        os.kill(child, signal.SIGKILL)
        killed = time.monotonic()
    assert killed is None or time.monotonic() - killed < 60, f"requests are not answered (seed {seed})"
for n, data, _ in pending.values():
    if data:
        may[n].add(data)
# A moment for whatever is on its way out of the dead process; there is nothing, it is dead.
with open(image, "rb") as file:
    for n in range(blocks):
        got = file.read(BLOCK)
        # A write that was cut short leaves sectors of both.
        if got not in may[n]:
            old, *new = list(may[n])
            for at in range(0, BLOCK, 512):
                assert any(got[at:at + 512] == m[at:at + 512] for m in may[n]), f"block {n} has something else (seed {seed})"
            assert new, f"block {n} was not written and differs (seed {seed})"
PY
    reap "$server"
    said=$(cat "$dir/server$servers.err")
    [ "$status" = 1 ] || fail "the server ended with $status: $said"
    contains "the last words" "$said" "killed by signal 9"
    contains "the last words" "$said" "xvda"
    [ ! -e "$socket" ] || fail "the socket was left behind"
    serve "$dir/$backend.img"
  done
  stop
done
