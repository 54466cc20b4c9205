#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# --pid-file names the server while it serves, and is gone afterwards; so is the socket.
# profile: default; no request is made
set -euo pipefail
. "$(dirname "$0")/lib.sh"

serve memory:16M --pid-file "$dir/pid"
expect "the file's process" "$(cat "$dir/pid")" "$server"
stop
[ ! -e "$dir/pid" ] || fail "the pid file was left behind"
[ ! -e "$socket" ] || fail "the socket was left behind"

# It is removed by whoever wrote it last, and what could not be written stays what it was.
serve memory:16M --pid-file "$dir/pid"
first=$server
first_socket=$socket
serve memory:16M --pid-file "$dir/pid"
kill -TERM "$first"
reap "$first"
expect "the file's process when another server has ended" "$(cat "$dir/pid")" "$server"
refused "cannot write" "$XBD_USER" serve --loopback memory:1M --socket "$first_socket" --pid-file "$socket"
[ -S "$socket" ] || fail "another server's socket was removed"
stop

# A link, which is whoever's it is, is written through.
: >"$dir/elsewhere"
ln -s "$dir/elsewhere" "$dir/link"
serve memory:16M --pid-file "$dir/link"
[ -L "$dir/link" ] || fail "the link was replaced"
expect "the process in the file that the link names" "$(cat "$dir/elsewhere")" "$server"
stop
[ -e "$dir/elsewhere" ] || fail "what the link names was removed"

# It is there for as long as the process is, which waits for a request that the backend has lost.
if [ "$backend" = reference ]; then
  requires python3-libnbd
  serve memory:16M --pid-file "$dir/pid" --fault drop:read@1
  libnbd "$server" "$dir/pid" <<'PY'
import os, signal, sys, time
import nbd
from nbdtools import connect

server, file = int(sys.argv[1]), sys.argv[2]
handle = connect()
handle.aio_pread(nbd.Buffer(512), 0)
handle.poll(200)
os.kill(server, signal.SIGTERM)
time.sleep(1)
assert os.path.exists(file), "the pid file went before its process"
assert os.path.exists(f"/proc/{server}"), "the server did not wait"
PY
  reap "$server"
  [ ! -e "$dir/pid" ] || fail "the pid file was left behind"
fi

# One that cannot be written ends the server, in order.
disk memory:16M
status=0
timeout 60 "$XBD_USER" serve --loopback "${disk[@]}" --socket "$socket" --pid-file "$dir/none/pid" >"$dir/out" 2>"$dir/said" ||
  status=$?
expect "the status of a server that cannot write its pid file" "$status" 1
contains "what it said" "$(cat "$dir/said")" "$dir/none/pid"
[ ! -e "$socket" ] || fail "the socket was left behind"
