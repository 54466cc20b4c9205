#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# timeout: 240
# A domain migrates again and again under load: everything is shared anew and every byte is right, with a backend in
# a process of its own and with the one inside serve, with and without --reconnect.
# backend: own; it goes through the backends itself
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/loopback.sh"
requires python3-libnbd

load() {
  touch "$dir/go"
  libnbd $((16 << 20)) "$dir/go" <"$here/reconnect.py" >"$dir/client.out" 2>&1 &
  client=$!
  started+=("$client")
}
unload() {
  rm "$dir/go"
  reap "$client"
  expect "client ($(tail -n 3 "$dir/client.out"))" "$status" 0
}
again() { [ "$(grep -c 'connected again, to' "$dir/$1.err")" -ge "$2" ]; }

start_host
start_backend "$dir/disk.img" --size 16M --max-queues 2
for options in "" "--reconnect" "--queues 2 --copy bounce"; do
  # shellcheck disable=SC2086
  start_front xvda $options
  load
  for round in 1 2 3 4; do
    sleep 0.5
    contains "migrate" "$("$XBD_USER" loopback migrate 1 "$xen")" "1 block device"
    eventually again front "$round"
  done
  unload
  stop
  cmp "$dir/disk.img" "$dir/go.model"
done
refused "no" "$XBD_USER" loopback migrate 9 "$xen"

# Everything in one process; NetBSD's backend is connected before it has the ring.
for profile in "" "--profile netbsd"; do
  # shellcheck disable=SC2086
  start own env XDG_RUNTIME_DIR="$dir" "$XBD_USER" serve --loopback "$dir/own.img" --size 16M --queues 2 \
    --socket "$dir/s" $profile
  server=$pid
  await_uri own
  load
  for round in 1 2 3; do
    sleep 0.5
    "$XBD_USER" loopback migrate 1 "$(echo "$dir"/xbd-user-*/xen)" >/dev/null
    eventually again own "$round"
  done
  unload
  stop
  cmp "$dir/own.img" "$dir/go.model"
  rm "$dir/own.img"
done
