#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# What a command was asked for and could not write to stdout fails it: a result in a file is all there, or the status says
# that it is not.
# backend: own; it is about commands that serve nothing
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/loopback.sh"

start_host
start_backend memory:1M

# unwritten COMMAND…: with a stdout that takes nothing, and with one that takes everything.
unwritten() {
  local status=0
  timeout -k 10 60 "$XBD_USER" "$@" >/dev/full 2>"$dir/said" </dev/null || status=$?
  expect "the status of '$*' that could not be written" "$status" 1
  contains "what '$*' said" "$(cat "$dir/said")" "cannot write the result"
  timeout -k 10 60 "$XBD_USER" "$@" >"$dir/result" </dev/null || fail "'$*' ended with $?"
  [ -s "$dir/result" ] || fail "'$*' printed nothing"
}
for form in "" --json; do
  # shellcheck disable=SC2086 # no word where it is empty
  {
    unwritten list --loopback "$xen" $form
    unwritten probe xvda --loopback "$xen" $form
    unwritten loopback status "$xen" $form
    unwritten measure --loopback memory:1M --seconds 1 --queues 1 $form
  }
done
end "$back_process" backend
unwritten list --loopback "$xen"
end "$host" host
