#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Signals that ask for the end are heard while a backend is waited for; those that whoever started the server had it ignore
# stay ignored; an ignored SIGCHLD keeps no command from being noticed when it ends.
# backend: own; it starts host and nodes itself
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires python3 nbdinfo xenstore-write

# A device whose backend has come as far as InitWait and does nothing more.
xen=$dir/xen
start host "$XBD_USER" loopback "$xen"
host=$pid
eventually test -s "$dir/host.out"
back=/local/domain/0/backend/vbd/1/51712
front=/local/domain/1/device/vbd/51712
dom0() { XENSTORED_PATH=$xen/dom0/xenstored.sock "$@"; }
dom0 xenstore-write $back/frontend $front $back/frontend-id 1 $back/online 1 $back/mode w $back/state 2 \
  $front/backend $back $front/backend-id 0 $front/virtual-device 51712 $front/device-type disk $front/state 1
dom0 xenstore-chmod -r $front n1 r0
dom0 xenstore-chmod -r $back n0 r1
state() { dom0 xenstore-read $front/state; }
published() { [ "$(state)" = 3 ]; }
closing() { [ "$(state)" = 5 ]; }
ended() { [ "$(state)" = 6 ]; }

for signal in TERM HUP; do
  for command in serve measure; do
    start waiting "$XBD_USER" $command 51712 --loopback "$xen" --timeout 600
    eventually published
    kill -$signal "$pid"
    # The backend lets go of what was begun.
    eventually closing
    dom0 xenstore-write $back/state 6
    reap "$pid"
    expect "the status of a $command that SIG$signal ended early" "$status" $((128 + $(kill -l $signal)))
    eventually ended
    [ ! -s "$dir/waiting.err" ] || fail "a $command that was told to end complains: $(cat "$dir/waiting.err")"
    dom0 xenstore-write $back/state 2 $front/state 1
  done
done
kill -TERM "$host"
reap "$host"

# ignoring SIGNAL… -- COMMAND…: as nohup, a shell's "&" or a careless parent start a program.
ignoring() {
  exec /usr/bin/python3 -c '
import os, signal, sys
split = sys.argv.index("--")
for name in sys.argv[1:split]:
    signal.signal(getattr(signal, name), signal.SIG_IGN)
os.execv(sys.argv[split + 1], sys.argv[split + 1:])' "$@"
}

start ignorant ignoring SIGHUP SIGINT -- "$XBD_USER" serve --loopback memory:1M --socket "$dir/s"
server=$pid
await_uri ignorant
kill -HUP "$server"
kill -INT "$server"
sleep 0.5
expect "the size after SIGHUP and SIGINT" "$(nbdinfo --size "$uri")" $((1 << 20))
stop

start childless ignoring SIGCHLD -- "$XBD_USER" serve --loopback memory:1M --run 'exit 3'
reap "$pid"
expect "the command's status" "$status" 3
