#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Signals that ask for the end are heard while a backend is waited for; those that whoever started the server had it ignore
# stay ignored; an ignored SIGCHLD keeps no command from being noticed when it ends.
# backend: own; it starts host and nodes itself
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/loopback.sh"
requires python3 nbdinfo xenstore-write

# A device whose backend has come as far as InitWait and does nothing more.
start_host
attach vbd 51712 nobody
dom0 xenstore-write "$back/state" 2

for signal in TERM HUP; do
  for command in serve measure; do
    # (Whoever runs the tests may have had them ignore a signal: nohup.)
    start waiting env --default-signal=HUP,TERM "$XBD_USER" $command 51712 --loopback "$xen" --timeout 600
    eventually frontend_is 3
    kill -$signal "$pid"
    # The backend lets go of what was begun.
    eventually frontend_is 5
    dom0 xenstore-write "$back/state" 6
    reap "$pid"
    expect "the status of a $command that SIG$signal ended early" "$status" $((128 + $(kill -l $signal)))
    eventually frontend_is 6
    [ ! -s "$dir/waiting.err" ] || fail "a $command that was told to end complains: $(cat "$dir/waiting.err")"
    dom0 xenstore-write "$back/state" 2 "$front/state" 1
  done
done
end "$host" host

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
