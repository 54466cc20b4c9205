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
