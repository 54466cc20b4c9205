#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# timeout: 400
# serve --reconnect: backends are killed with -9 in the middle of I/O, clients go on, and every byte is right. Without
# it the clients are told, and the server says what happened in one sentence.
# backend: own; it starts and kills backends itself
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires python3-libnbd /usr/libexec/xen-qemu-system-i386

child() { pgrep -P "$server" | head -n 1; }
another() { local now; now=$(child) && [ -n "$now" ] && [ "$now" != "$1" ]; }
reconnected() { [ "$(grep -c 'connected again' "$dir/server$servers.err")" -ge "$1" ]; }

for backend in process qemu; do
  for copy in direct bounce; do
    serve "$dir/$backend.img" --size 16M --backend "$backend" --reconnect --copy "$copy"
    touch "$dir/go"
    libnbd $((16 << 20)) "$dir/go" <"$here/reconnect.py" >"$dir/client.out" 2>&1 &
    client=$!
    started+=("$client")
    for round in 1 2 3; do
      sleep 0.7
      old=$(child)
      kill -KILL "$old"
      eventually another "$old"
      eventually reconnected "$round"
    done
    sleep 0.5
    rm "$dir/go"
    reap "$client"
    expect "client over $backend, $copy ($(tail -n 3 "$dir/client.out"))" "$status" 0
    stop
    cmp "$dir/$backend.img" "$dir/go.model"
    rm "$dir/$backend.img"
  done
done

# Patience ends; it lasts as long as QEMU may take to start on a busy machine.
start server "$XBD_USER" serve --loopback "$dir/none.img" --size 1M --backend none --socket "$dir/own" \
  --reconnect --reconnect-timeout 15
server=$pid
eventually grep -q XBD_LOOPBACK= "$dir/server.err"
xen=$(sed -nE 's/^ *XBD_LOOPBACK=(.*)/\1/p' "$dir/server.err")
qemu() {
  start qemu "$XBD_USER" loopback exec "$xen" -- /usr/libexec/xen-qemu-system-i386 -M xenpv -xen-attach -xen-domid 1 \
    -nographic -nodefaults -no-user-config -monitor none -serial none -parallel none
  qemu=$pid
}
qemu
pid=$server
await_uri server
kill_hard "$qemu"
qemu
pid=$server
eventually grep -q "connected again" "$dir/server.err"
libnbd <<'PY'
import nbdtools

h = nbdtools.connect()
h.pwrite(b"x" * 4096, 0)
assert h.pread(4096, 0) == b"x" * 4096
PY
kill_hard "$qemu"
libnbd <<'PY'
import nbdtools

h = nbdtools.connect()
with nbdtools.expect("ESHUTDOWN|ENOTCONN"):
    h.pread(4096, 0)
PY
reap "$server"
expect "status after patience has ended" "$status" 1
contains "the sentence" "$(tail -n 1 "$dir/server.err")" "no backend has connected for 15 s"

# Without --reconnect.
serve "$dir/plain.img" --size 1M --backend process
kill -KILL "$(child)"
reap "$server"
expect "status without --reconnect" "$status" 1
contains "the sentence" "$(tail -n 1 "$dir/server$servers.err")" "was killed by signal 9"
