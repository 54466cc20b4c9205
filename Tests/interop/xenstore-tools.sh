#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The loopback's xenstore speaks the real wire protocol: Xen's own tools read the device's nodes.
# backend: own; it is about xenstore
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires xenstore-ls xenstore-read xenstore-write

start host "$XBD_USER" loopback "$dir/xen"
host=$pid
eventually test -s "$dir/host.out"
start backend "$XBD_USER" backend memory:32M --loopback "$dir/xen"
backend=$pid
eventually test -s "$dir/backend.out"
start front "$XBD_USER" serve xvda --loopback "$dir/xen" --socket "$dir/s"
server=$pid
await_uri front
export XENSTORED_PATH=$dir/xen/dom0/xenstored.sock
tree=$(timeout 30 xenstore-ls -f /)
contains "the tree" "$tree" "virtual-device = \"51712\""
contains "the tree" "$tree" "feature-persistent = \"1\""
path=$(printf '%s\n' "$tree" | sed -nE 's|^(/.*/backend/vbd/[0-9]+/51712)/sectors = .*|\1|p' | head -n 1)
[ -n "$path" ] || fail "no backend directory in: $tree"
expect "sectors" "$(timeout 30 xenstore-read "$path/sectors")" 65536
expect "state" "$(timeout 30 xenstore-read "$path/state")" 4
# What the other end wrote must not do anything to the terminal that it is shown on.
timeout 30 xenstore-write "$path/hello" '\x1b[2Jthere'
probed=$("$XBD_USER" probe xvda --loopback "$dir/xen")
contains "probe" "$probed" "[2Jthere"
expect "escapes in it" "$(printf '%s' "$probed" | tr -cd '\033' | wc -c)" 0
for process in "$server" "$backend" "$host"; do
  kill -TERM "$process"
  reap "$process"
  expect "status" "$status" 0
done
