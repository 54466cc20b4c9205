#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# A frontend that was killed leaves its device connected: reset closes it, and serve recovers by itself.
# backend: own; host and backend are processes of the script
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/loopback.sh"
requires nbdcopy

start_host
random_file "$dir/disk.img" $((4 << 20))
start_backend "$dir/disk.img"
states() { "$XBD_USER" list --loopback "$xen" | awk '/xvda/ { print $3, $5 }'; }
state_is() { [ "$(states)" = "$1" ]; }

eventually state_is "1 2"
start_front xvda
expect "states" "$(states)" "4 4"
refused "driven by another process" "$XBD_USER" reset xvda --loopback "$xen"
kill_hard "$server"
expect "states after the kill" "$(states)" "4 4"
contains "reset" "$("$XBD_USER" reset xvda --loopback "$xen")" "frontend 1 (Initialising)"
eventually state_is "1 2"
probed=$("$XBD_USER" probe xvda --loopback "$xen")
contains "probe" "$probed" sectors
case $probed in *ring-ref*) fail "a ring is left: $probed" ;; esac

# serve does it by itself.
start_front xvda
kill_hard "$server"
start_front xvda
nbdcopy "$uri" - | cmp - "$dir/disk.img"
stop
refused "no block device" "$XBD_USER" reset xvdz --loopback "$xen"
