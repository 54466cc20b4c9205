#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# timeout: 120
# SIGTERM while there is no backend and --reconnect waits for the next: what clients have in flight is ended, and the
# server ends in a few seconds, leaving neither socket nor process. If something was written it says that nobody could
# flush it.
# backend: own; it is about a backend that is not there
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/loopback.sh"
requires python3-libnbd

start_host
start_backend "$dir/disk.img" --size 16M
# With something in flight, and with nothing; and with nothing written at all.
for work in "write 8" "write 0" "read 8"; do
  read -r kind in_flight <<<"$work"
  start_front xvda --reconnect --request-timeout 2
  libnbd "$back_process" "$server" "$dir/front.err" "$in_flight" "$kind" <<'PY'
import os, signal, sys, time

import nbd
from nbdtools import connect, freeze, state

back, server, count, kind = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[4]), sys.argv[5]
h = connect()


def ask(n):
    if kind == "write":
        return h.aio_pwrite(b"\xa5" * 65536, n << 20)
    return h.aio_pread(nbd.Buffer(65536), n << 20)


if kind == "write":
    h.pwrite(b"\x5a" * 65536, 0)
freeze(back)
cookies = [ask(n) for n in range(max(count, 1))]
# Only a request that nobody answers shows that the backend is no more.
for _ in range(300):
    if "requests wait for the next one" in open(sys.argv[3]).read():
        break
    h.poll(100)
else:
    raise AssertionError("the backend is never missed")
if not count:
    h = None
else:
    # One more that comes during the gap.
    cookies.append(h.aio_pread(nbd.Buffer(4096), 0))
began = time.monotonic()
os.kill(server, signal.SIGTERM)
while time.monotonic() - began < 60 and state(server) not in (None, "Z"):
    time.sleep(0.05)
took = time.monotonic() - began
assert took < 10, f"the server took {took:.1f} s"
if h:
    for cookie in cookies:
        try:
            while not h.aio_command_completed(cookie):
                h.poll(1000)
            raise AssertionError("an answer that nobody can have given")
        except nbd.Error:
            pass
PY
  reap "$server"
  if [ "$kind" = write ]; then
    expect "status with $in_flight writes in flight" "$status" 1
    contains "what it said" "$(tail -n 1 "$dir/front.err")" "no backend to be flushed by"
  else
    expect "status when nothing was written" "$status" 0
  fi
  [ ! -e "$dir/s" ] || fail "the socket was left behind"
  # The next round has a backend of its own again.
  kill -CONT "$back_process"
  end "$back_process" backend
  start_backend "$dir/disk.img" --size 16M
done
