#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# A backend that dies after it has offered its disk and before it is connected: the server ends at once, and says who died
# and how.
# backend: own; it is about a backend in a process of its own
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/loopback.sh"
requires xenstore-read

# What attach would have set, of the device that the server has.
back=/local/domain/0/backend/vbd/1/51712
front=/local/domain/1/device/vbd/51712
is_settled() { [ -s "$dir/early.out" ] || ! alive "$server" || { frontend_is 3 && backend_is 2; }; }
has_helper() { helper=$(pgrep -P "$server") || ! alive "$server"; }

stops() { kill -STOP "$helper" 2>/dev/null; }

# hold SECONDS: a server whose backend's process is stopped at InitWait, with the frontend waiting for it. Fails when that one
# got further meanwhile, or the server has no patience left.
hold() {
  helper=
  start early "$XBD_USER" serve --loopback "$dir/disk.img" --size 1M --backend process --socket "$dir/s" --timeout "$1"
  server=$pid
  eventually has_helper
  [ -n "$helper" ] || return 1
  started+=("$helper")
  xen=$(find "$dir" -path '*/dom0/xenstored.sock')
  xen=${xen%/dom0/xenstored.sock}
  # A step at a time: the server looks every tenth of a second, and sees only a backend that stands still.
  until stops && backend_is 2; do
    if ! alive "$server" || backend_is 4; then return 1; fi
    kill -CONT "$helper" 2>/dev/null || return 1
    sleep 0.01
  done
  eventually is_settled
  frontend_is 3 && backend_is 2
}

held=no
for _ in 1 2 3; do
  # More than `reap` waits for its end.
  if hold 600; then
    held=yes
    break
  fi
  ! alive "$server" || kill_hard "$server"
  [ -z "$helper" ] || kill -KILL "$helper" 2>/dev/null || true
  # Its host's as well.
  find "$dir" -type s -delete
done
[ $held = yes ] || fail "the backend could not be stopped between InitWait and Connected"
kill -KILL "$helper"
reap "$server"
said=$(cat "$dir/early.err")
expect "the status" "$status" 1
contains "what it said" "$said" "was killed by signal 9"
expect "what it served" "$(cat "$dir/early.out")" ""
[ ! -e "$dir/s" ] || fail "the socket was left behind"
