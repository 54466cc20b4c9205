#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# --pid-file and --stats-file in a filesystem that is full leave what was there, and nothing beside it.
# backend: own; it is about the files
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires root

full=$dir/full
mkdir "$full"
mount -t tmpfs -o size=64k,mode=700 xbd-interop "$full"
mounted=("$full")

# What is replaced would make room for itself: the one file has no block, and the other needs more than it has.
truncate -s 10 "$full/pid"
echo '{"what": "was there"}' >"$full/stats.json"
cat /dev/zero >"$full/filler" 2>/dev/null || true
if echo more >"$full/more" 2>/dev/null; then fail "the filesystem is not full"; fi
rm "$full/more"
before=$(cd "$full" && sha256sum -- *)

refused "$full/pid" "$XBD_USER" serve --loopback memory:1M --socket "$dir/s" --pid-file "$full/pid"
[ ! -e "$dir/s" ] || fail "the socket was left behind"
expect "the files after a pid file that could not be written" "$(cd "$full" && sha256sum -- *)" "$before"

# More than the page that the old ones have.
refused "$full/stats.json" "$XBD_USER" serve --loopback memory:1M --queues 8 --stats-file "$full/stats.json" --run true
expect "the files after statistics that could not be written" "$(cd "$full" && sha256sum -- *)" "$before"

# Once there is room they are replaced.
rm "$full/filler"
serve memory:1M --queues 8 --pid-file "$full/pid" --stats-file "$full/stats.json"
expect "the pid file" "$(cat "$full/pid")" "$server"
stop
[ ! -e "$full/pid" ] || fail "the pid file was left behind"
[ "$(stat -c %s "$full/stats.json")" -gt 4096 ] || fail "these statistics would have had room: $(cat "$full/stats.json")"
expect "what is there at the end" "$(ls "$full")" stats.json
umount "$full"
mounted=()
