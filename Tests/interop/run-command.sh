#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# --run starts a command with $uri set, and its status is the server's.
# profile: default; it is about the command
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires nbdinfo

disk memory:32M
# The command's own variables are for the shell that the server starts.
# shellcheck disable=SC2016
timeout 60 "$XBD_USER" serve --loopback "${disk[@]}" "${serve_args[@]}" \
  --run 'nbdinfo --size "$uri" && [ -S "$unixsocket" ]' >"$dir/out"
expect "what the command printed" "$(cat "$dir/out")" $((32 << 20))
status=0
timeout 60 "$XBD_USER" serve --loopback "${disk[@]}" "${serve_args[@]}" --run 'exit 3' || status=$?
expect "the command's status" $status 3

# A command whose device is gone is told to end.
backend=process
disk "$dir/disk.img"
start gone "$XBD_USER" serve --loopback "${disk[@]}" --size 16M --run "echo \$\$ >'$dir/command'; exec sleep 600"
server=$pid
eventually test -s "$dir/command"
command=$(cat "$dir/command")
kill -KILL "$(pgrep -P "$server" | grep -vx "$command")"
reap "$server"
expect "the status of a server whose backend was killed" "$status" 1
gone() { ! alive "$command"; }
eventually gone

# A signal that ends the server ends the command as well, and neither calls that a success.
backend=reference
for signal in TERM INT; do
  start cut env --default-signal=INT "$XBD_USER" serve --loopback memory:1M --run "echo >'$dir/$signal'; exec sleep 600"
  server=$pid
  eventually test -s "$dir/$signal"
  kill -"$signal" "$server"
  reap "$server"
  # The command is told to end by SIGTERM in either case.
  expect "the status of a server that SIG$signal ended with its command" "$status" 143
done
# One that ends well all the same says so.
start well "$XBD_USER" serve --loopback memory:1M \
  --run "trap 'exit 0' TERM; echo >'$dir/well'; while :; do sleep 0.1; done"
server=$pid
eventually test -s "$dir/well"
kill -TERM "$server"
reap "$server"
expect "the status of a command that ends well when it is told to" "$status" 0

# Variables are bytes, and what cannot be written is said beside what was worse.
# shellcheck disable=SC2016
X=$(printf '\377') "$XBD_USER" serve --loopback memory:1M --run 'printf %s "$X" | od -An -tx1' >"$dir/bytes"
expect "a variable that is not UTF-8" "$(tr -d ' ' <"$dir/bytes")" ff
status=0
"$XBD_USER" serve --loopback memory:1M --run 'exit 3' --stats-file "$dir/none/stats" 2>"$dir/said" || status=$?
expect "the command's status without statistics" "$status" 3
contains "what is said of the statistics" "$(cat "$dir/said")" "$dir/none/stats"
