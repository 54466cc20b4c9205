#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Started without stdin, stdout and stderr, as some supervisors do it, a server puts /dev/null there: what it says goes
# nowhere, and above all not into the image that would have got the number of one of them.
# backend: own; whose descriptors are closed is started here
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/loopback.sh"
requires python3-libnbd

# closed COMMAND…: without descriptors 0, 1 and 2.
closed() {
  exec /usr/bin/python3 -c '
import os, sys
os.closerange(0, 3)
os.execv(sys.argv[1], sys.argv[1:])' "$@"
}

# has_null PROCESS WHAT
has_null() {
  local number
  for number in 0 1 2; do
    expect "descriptor $number of the $2" "$(readlink "/proc/$1/fd/$number")" /dev/null
  done
}

# Reads, of which the image should show nothing.
read_all() {
  libnbd "$dir/disk.img" <<'PY'
import sys
from nbdtools import connect
handle = connect()
assert bytes(handle.pread(1 << 20, 0)) == open(sys.argv[1], "rb").read(), "the disk is not the image"
handle.shutdown()
PY
}

random_file "$dir/disk.img" $((1 << 20))
before=$(sum "$dir/disk.img")

start_host
is_there() { "$XBD_USER" list --loopback "$xen" | grep -q xvda; }
start backend closed "$XBD_USER" backend "$dir/disk.img" --loopback "$xen" -v
back_process=$pid
eventually is_there
start_front xvda
read_all
has_null "$back_process" backend
stop
end "$back_process" backend
end "$host" host
expect "the image after a backend without descriptors" "$(sum "$dir/disk.img")" "$before"

start alone closed "$XBD_USER" serve --loopback "$dir/disk.img" --socket "$dir/alone.sock" -v
server=$pid
uri="nbd+unix:///?socket=$dir/alone.sock"
eventually test -S "$dir/alone.sock"
read_all
has_null "$server" server
stop
expect "the image after a server without descriptors" "$(sum "$dir/disk.img")" "$before"
