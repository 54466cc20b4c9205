#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# timeout: 300
# A QEMU that is stopped (SIGSTOP) and goes on (SIGCONT): requests wait and are answered. One that does not go on: who
# waits for it gives up and names both ends' states.
# backend: own; the reference backend has no process to stop
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/loopback.sh"
requires python3-libnbd /usr/libexec/xen-qemu-system-i386 xenstore-write

backend=qemu
serve "$dir/disk.img" --size 64M
qemu=$(pgrep -P "$server")

# Stopped now and then under load: slower, and never a wrong byte.
(
  while alive "$server"; do
    kill -STOP "$qemu"
    sleep 0.3
    kill -CONT "$qemu"
    sleep 0.2
  done
) 2>/dev/null &
stopper=$!
started+=("$stopper")
libnbd 6 "$dir/disk.img" <"$here/soak.py"
kill_hard "$stopper"
kill -CONT "$qemu"

# Stopped for longer: a request waits for as long as it takes.
libnbd "$qemu" <<'PY'
import os, signal, sys
import nbd
from nbdtools import connect, freeze

qemu = int(sys.argv[1])
h = connect()
h.pwrite(b"\x5a" * 4096, 4096)

freeze(qemu)
buffer = nbd.Buffer(4096)
cookie = h.aio_pread(buffer, 4096)
for _ in range(20):
    h.poll(100)
    assert not h.aio_command_completed(cookie), "an answer of a backend that is stopped"
os.kill(qemu, signal.SIGCONT)
while not h.aio_command_completed(cookie):
    h.poll(1000)
assert bytes(buffer.to_bytearray()) == b"\x5a" * 4096

# And for good: the server is told to end, and does.
freeze(qemu)
cookie = h.aio_pread(nbd.Buffer(4096), 4096)
h.poll(500)
os.kill(int(os.popen(f"ps -o ppid= {qemu}").read()), signal.SIGTERM)
try:
    while not h.aio_command_completed(cookie):
        h.poll(1000)
    raise AssertionError("an answer of a backend that is stopped")
except nbd.Error:
    pass
PY
patience=900 reap "$server"
said=$(cat "$dir/server$servers.err")
expect "the status of a server that had to give up" "$status" 1
contains "what it said" "$said" "does not answer"
contains "what it said" "$said" "frontend 4 (Connected)"
contains "what it said" "$said" "backend 4 (Connected)"
! alive "$qemu" || fail "the stopped QEMU was left behind"

# Stopped before the frontend comes.
start_host
attach qdisk 51712 "raw:$dir/disk.img"
start_qemu
eventually backend_is 2
kill -STOP "$qemu"
refused "frontend 3 (Initialised), backend 2 (InitWait)" "$XBD_USER" serve 51712 --loopback "$xen" --socket "$dir/s" --timeout 2
kill -CONT "$qemu"
# It goes on, and so does the next frontend.
start_front 51712
libnbd <<'PY'
from nbdtools import connect
assert connect().pread(4096, 4096) == b"\x5a" * 4096
PY
stop
end "$qemu" QEMU
end "$host" host
