#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# `measure`: a load on the library's queues; its figures add up, and it overwrites nothing that it was not allowed to.
# backend: own; it serves no socket
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/loopback.sh"
requires python3

# figure FILE EXPRESSION: of the JSON, as r.
figure() {
  /usr/bin/python3 -c 'import json, sys; r = json.load(open(sys.argv[1])); assert eval(sys.argv[2]), r' "$1" "$2"
}

measure() { "$XBD_USER" measure --seconds 1 --queues 1 "$@"; }

measure --loopback memory:16M --json >"$dir/direct.json"
figure "$dir/direct.json" 'r["failed"] == 0 and r["requests"] > 1000 and r["copiedPerByte"] == 0'
figure "$dir/direct.json" 'abs(r["requests"] / r["seconds"] / r["requestsPerSecond"] - 1) < 0.01'
measure --loopback memory:16M --copy bounce --load randwrite --json >"$dir/bounce.json"
figure "$dir/bounce.json" 'r["failed"] == 0 and r["copiedPerByte"] == 1'
measure --loopback memory:16M --grants per-request --json >"$dir/each.json"
figure "$dir/each.json" 'r["grantsPerRequest"] >= 0.99'
# Eleven segments of a page for each request on the ring.
measure --loopback memory:16M --indirect 0 --block 88K --load read --json >"$dir/segments.json"
figure "$dir/segments.json" 'r["ringRequestsPerRequest"] == 2'

# Files are kept, unless they are given.
head -c 1048576 /dev/urandom >"$dir/disk.img"
sum=$(sha256sum <"$dir/disk.img")
if measure --loopback "$dir/disk.img" --load write 2>"$dir/refused.err"; then fail "wrote without --overwrite"; fi
grep -q -- '--overwrite' "$dir/refused.err" || fail "no word of --overwrite"
measure --loopback "$dir/disk.img" >/dev/null
[ "$sum" = "$(sha256sum <"$dir/disk.img")" ] || fail "a read changed the image"
measure --loopback "$dir/disk.img" --load write --overwrite | grep -q 'requests/s' || fail "no figures for a person"
[ "$sum" != "$(sha256sum <"$dir/disk.img")" ] || fail "a write changed nothing"
if measure --loopback memory:1M --block 100 2>"$dir/block.err"; then fail "a request of 100 bytes"; fi
grep -q 'multiple of its sector' "$dir/block.err" || fail "no word of the sector"
# A device that refuses writes is said to be one, and is read.
start_host
start_backend "$dir/disk.img" --read-only
refused "read-only" "$XBD_USER" measure xvda --loopback "$xen" --load write --overwrite --seconds 1
measure xvda --loopback "$xen" --load read >/dev/null
end "$back_process" backend
end "$host" host

# A signal ends it early, with figures; faults of the backend fail it.
"$XBD_USER" measure --loopback memory:16M --seconds 600 --json >"$dir/signal.json" &
started+=($!)
runs() { grep -qs measure-0 /proc/$!/task/*/comm; }
eventually runs
sleep 0.5
kill -TERM $!
wait $!
figure "$dir/signal.json" 'r["requests"] > 0 and r["seconds"] < 60'
if measure --loopback memory:16M --fault error:read@100 2>"$dir/fault.err" >/dev/null; then fail "a failed read is no failure"; fi
grep -q 'failed' "$dir/fault.err" || fail "no word of failed requests"
# A request that is never answered ends with the device, which is closed over it.
status=0
timeout -k 10 60 "$XBD_USER" measure --loopback memory:16M --seconds 1 --queues 1 --fault drop:read@100 >/dev/null 2>"$dir/drop.err" ||
  status=$?
expect "the status of a load that was left without an answer" "$status" 1
grep -q 'failed' "$dir/drop.err" || fail "no word of failed requests"
refused "only read is not created" "$XBD_USER" measure --loopback "$dir/new.img" --size 1M
mkfifo "$dir/fifo"
refused "$dir/fifo" "$XBD_USER" measure --loopback "$dir/fifo"
