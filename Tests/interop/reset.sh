#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# A frontend that was killed leaves its device connected: reset closes it, and serve recovers by itself.
# backend: own; host and backend are processes of the script
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires nbdcopy

xen=$dir/xen
start host "$XBD_USER" loopback "$xen"
eventually test -s "$dir/host.out"
random_file "$dir/disk.img" $((4 << 20))
start back "$XBD_USER" backend "$dir/disk.img" --loopback "$xen"
eventually test -s "$dir/back.out"
states() { "$XBD_USER" list --loopback "$xen" | awk '/xvda/ { print $3, $5 }'; }
state_is() { [ "$(states)" = "$1" ]; }
front() {
  start front "$XBD_USER" serve xvda --loopback "$xen" --socket "$dir/s"
  server=$pid
  await_uri front
}

eventually state_is "1 2"
front
expect "states" "$(states)" "4 4"
refused "driven by another process" "$XBD_USER" reset xvda --loopback "$xen"
kill_hard "$server"
expect "states after the kill" "$(states)" "4 4"
contains "reset" "$("$XBD_USER" reset xvda --loopback "$xen")" "frontend 1 (Initialising)"
eventually state_is "1 2"
contains "no ring" "$("$XBD_USER" probe xvda --loopback "$xen" | grep -c ring-ref || true)" 0

# serve does it by itself.
front
kill_hard "$server"
front
nbdcopy "$uri" - | cmp - "$dir/disk.img"
stop
refused "no block device" "$XBD_USER" reset xvdz --loopback "$xen"
