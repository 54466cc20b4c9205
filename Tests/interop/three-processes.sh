#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# timeout: 300
# Host, backend and frontend as three processes are the same system as the one process, and each may die.
# backend: own; host, backend and frontend are processes of the script
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/loopback.sh"
requires nbdcopy nbdinfo

random_file "$dir/in" $((16 << 20))
host() { start_host --gntalloc-limit 4096; }
backend() { start_backend "$dir/disk.img" --size 16M; }
# gone PROCESS WHAT: it ends, told to or by itself, with a sentence at most: no crash.
gone() {
  kill -TERM "$1" 2>/dev/null || true
  reap "$1"
  [ "$status" = 0 ] || [ "$status" = 1 ] || fail "the $2 ended with $status"
}
frontend() { start_front xvda "${serve_args[@]}"; }

host
backend
frontend
nbdcopy --flush "$dir/in" "$uri"
nbdcopy "$uri" - | cmp - "$dir/in"
contains "list" "$("$XBD_USER" list --loopback "$xen")" xvda
contains "probe" "$("$XBD_USER" probe xvda --loopback "$xen")" sectors
# verdict WHAT OPTION…: what a probe that asks for less says of it.
verdict() { "$XBD_USER" probe xvda --loopback "$xen" "${@:2}" | sed -nE "s/^  $1 +//p"; }
expect "durability" "$(verdict "durability by")" flush
expect "durability without flushes" "$(verdict "durability by" --ignore-flush)" barrier
expect "durability without either" "$(verdict "durability by" --ignore-flush --ignore-barrier)" none
expect "discard that is not wanted" "$(verdict discard --ignore-discard)" no
expect "discard that has to be secure" "$(verdict discard --secure-discard)" no
expect "grants of one request each" "$(verdict "grants stay mapped" --grants per-request)" no

# The frontend dies: a second one takes its place, and the disk is as it was.
kill_hard "$server"
frontend
nbdcopy "$uri" - | cmp - "$dir/in"

# The backend dies: the frontend does not hang for ever; clients get errors or are served again by the next one.
kill_hard "$back_process"
answer=0
timeout 60 nbdinfo --size "$uri" >/dev/null 2>&1 || answer=$?
[ $answer != 124 ] || fail "a client hangs when the backend has died"
gone "$server" frontend
cmp "$dir/in" "$dir/disk.img"
backend
frontend
nbdcopy "$uri" - | cmp - "$dir/in"

# The host dies: the others end or can be ended, and a new system starts from the image.
kill_hard "$host"
gone "$server" frontend
gone "$back_process" backend
cmp "$dir/in" "$dir/disk.img"
host
backend
frontend
nbdcopy "$uri" - | cmp - "$dir/in"

# And an orderly end, in the order that a toolstack would choose.
end "$server" frontend
end "$back_process" backend
end "$host" host
cmp "$dir/in" "$dir/disk.img"
