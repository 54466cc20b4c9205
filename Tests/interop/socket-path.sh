#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# A socket path of a live server is refused, one that a dead server left is replaced, another file is left alone.
# profile: default; it is about the socket
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires nbdinfo

serve memory:16M
taken=$socket
first=$server
refused "$taken" "$XBD_USER" serve --loopback memory:1M --socket "$taken"
expect "the first server's size" "$(nbdinfo --size "$uri")" $((16 << 20))
kill_hard "$first"
[ -S "$taken" ] || fail "a killed server cannot remove its socket"
disk memory:32M
start second "$XBD_USER" serve --loopback "${disk[@]}" --socket "$taken" "${serve_args[@]}"
server=$pid
await_uri second
expect "the second server's size" "$(nbdinfo --size "$uri")" $((32 << 20))
stop
# A server that ends leaves alone what another one has put in its place.
serve memory:16M
taken=$socket
first=$server
rm "$taken"
start third "$XBD_USER" serve --loopback memory:1M --socket "$taken"
third=$pid
await_uri third
kill -TERM "$first"
reap "$first"
[ -S "$taken" ] || fail "a server that ended has removed the socket of the next one"
expect "the size of the server that took the place" "$(nbdinfo --size "$uri")" $((1 << 20))
server=$third
stop
echo precious >"$dir/file"
refused "$dir/file" "$XBD_USER" serve --loopback memory:1M --socket "$dir/file"
expect "the file" "$(cat "$dir/file")" precious
long=$dir/$(printf 'x%.0s' $(seq 1 120))
refused "107" "$XBD_USER" serve --loopback memory:1M --socket "$long"
refused "$dir/none" "$XBD_USER" serve --loopback memory:1M --socket "$dir/none/s"
