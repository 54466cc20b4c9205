#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# timeout: 300
# `xbd-user backend` and `xbd-user serve` over libxen, as in a domain 0 and a guest: nodes of its own, nodes that a
# toolstack has written, detach, a backend that is killed, a frontend's domain that goes.
# backend: own; it is about the reference backend as a program
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/loopback.sh"
requires nbdcopy xenstore-write xenstore-ls

start_host
random_file "$dir/in" $((8 << 20))

backend() {
  start backend "$XBD_USER" loopback exec "$xen" -- "$XBD_USER" backend "$dir/disk.img" --size 8M "$@"
  backend=$pid
  eventually test -s "$dir/backend.out"
}
frontend() {
  start front "$XBD_USER" loopback exec --domain 1 "$xen" -- "$XBD_USER" serve "$1" --socket "$dir/s" \
    "${serve_args[@]}"
  server=$pid
  await_uri front
}
is_gone() { ! alive "$1"; }
absent() { ! dom0 xenstore-read "$1" 2>/dev/null; }

# Nodes of its own: created with what libxl would write, removed at the end.
back=/local/domain/0/backend/xbd/1/51728
front=/local/domain/1/device/vbd/51728
backend --frontend-domain domain-1 --vdev xvdb
expect "backend's state" "$(dom0 xenstore-read "$back/state")" 2
expect "frontend's state" "$(dom0 xenstore-read "$front/state")" 1
expect "backend node" "$(dom0 xenstore-read "$front/backend")" "$back"
contains "permissions" "$(dom0 xenstore-ls -p "$front")" "(n1,r0)"
contains "permissions" "$(dom0 xenstore-ls -p "$back")" "(n0,r1)"
frontend xvdb
nbdcopy --flush "$dir/in" "$uri"
nbdcopy "$uri" - | cmp - "$dir/in"

# One device, one backend.
refused "another process" "$XBD_USER" loopback exec "$xen" -- "$XBD_USER" backend memory:1M --frontend-domain 1 --vdev xvdb
refused "already" "$XBD_USER" loopback exec "$xen" -- "$XBD_USER" backend memory:1M --frontend-domain 1 --vdev xvdb --kind other

# Both killed: the next backend takes the nodes over and serves whoever begins again.
kill_hard "$backend"
kill_hard "$server"
backend --frontend-domain 1 --vdev 51728
frontend 51728
nbdcopy "$uri" - | cmp - "$dir/in"

# Killed, and its frontend still holds on to the ring: features are offered again, nothing else is done to it.
kill_hard "$backend"
backend --frontend-domain 1 --vdev 51728
contains "what it says" "$(cat "$dir/backend.err")" "an earlier backend died"
eventually is_gone "$server"
contains "what the frontend says" "$(cat "$dir/front.err")" "left without closing"
frontend 51728
nbdcopy "$uri" - | cmp - "$dir/in"

# SIGTERM: the frontend is asked to close, and all nodes go.
kill -TERM "$backend"
reap "$backend"
expect "the backend's status" "$status" 0
eventually is_gone "$server"
absent "$back/state" || fail "the backend's nodes are still there"
absent "$front/state" || fail "the frontend's nodes are still there"
cmp "$dir/in" "$dir/disk.img"

# A toolstack's nodes, written while the backend waits for them; it ends when they are taken away.
back=/local/domain/0/backend/vbd/1/51744
refused "no device" "$XBD_USER" loopback exec "$xen" -- "$XBD_USER" backend memory:1M "$back"
start backend "$XBD_USER" loopback exec "$xen" -- "$XBD_USER" backend "$dir/disk.img" "$back" --wait
backend=$pid
eventually grep -q waiting "$dir/backend.err"
attach vbd 51744 "$dir/disk.img"
eventually test -s "$dir/backend.out"
frontend xvdc
nbdcopy "$uri" - | cmp - "$dir/in"
# What xl block-detach does.
dom0 xenstore-write "$back/online" 0 "$back/state" 5
reap "$backend"
expect "the backend's status" "$status" 0
contains "what it says" "$(cat "$dir/backend.err")" "is gone"
expect "backend's state" "$(dom0 xenstore-read "$back/state")" 6
eventually is_gone "$server"
dom0 xenstore-rm "$back"
dom0 xenstore-rm "$front"

# Read-only by the toolstack's mode.
attach vbd 51744 "$dir/disk.img" r
backend "$back"
frontend xvdc
expect "read-only" "$(nbdinfo --is readonly "$uri" && echo yes)" yes
kill -TERM "$backend"
reap "$backend"
expect "backend's state" "$(dom0 xenstore-read "$back/state")" 6
eventually is_gone "$server"

# The frontend's domain goes, as after xl destroy: the backend ends by itself and leaves nothing.
back=/local/domain/0/backend/xbd/1/51728
backend --frontend-domain 1 --vdev xvdb
dom0 xenstore-rm /local/domain/1/device
reap "$backend"
expect "the backend's status" "$status" 0
absent "$back/state" || fail "the backend's nodes are still there"

# What cannot be is said in one sentence.
refused "no domain" "$XBD_USER" loopback exec "$xen" -- "$XBD_USER" backend memory:1M --frontend-domain 77
refused "is called" "$XBD_USER" loopback exec "$xen" -- "$XBD_USER" backend memory:1M --frontend-domain nobody
refused "no backend's directory" "$XBD_USER" loopback exec "$xen" -- "$XBD_USER" backend memory:1M /local/domain/0/vbd
refused "xen guest" "$XBD_USER" backend memory:1M --frontend-domain 1

# What it cannot serve leaves no device behind that a guest would wait for.
refused "ring" "$XBD_USER" loopback exec "$xen" -- "$XBD_USER" backend memory:1M --frontend-domain 1 --vdev xvde --backend-ring-order 9
absent /local/domain/1/device/vbd/51776/state || fail "a device that nobody serves was left behind"

# xenstore goes: the backend says so and ends.
backend --frontend-domain 1 --vdev xvdd
kill -TERM "$host"
reap "$host"
reap "$backend"
[ "$status" != 0 ] || fail "the backend went on without xenstore"
contains "what it says" "$(cat "$dir/backend.err")" "no longer looked after"
