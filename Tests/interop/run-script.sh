#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# scripts/run serves a disk where it is told to, says where that is, and ends in order when it is told to end.
# backend: own; the script starts the server
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires nbdinfo

# With the binary that is tried.
mkdir -p "$dir/tree/scripts" "$dir/tree/.build/release"
cp "$repository/scripts/run" "$dir/tree/scripts/run"
ln -s "$(realpath "$XBD_USER")" "$dir/tree/.build/release/xbd-user"

# try [OPTION…]: sets $uri, where it is served.
try() {
  local served=
  TMPDIR=$dir start run "$dir/tree/scripts/run" memory:16M "$@"
  script=$pid
  # Whoever kills the script leaves its server behind.
  has_server() { served=$(pgrep -P "$script" -x xbd-user) || ! alive "$script"; }
  eventually has_server
  started+=("$served")
  has_begun() { grep -q '^nbd' "$dir/run.out" || ! alive "$script"; }
  eventually has_begun
  uri=$(sed -n '/^nbd/{p;q}' "$dir/run.out")
  [ -n "$uri" ] || fail "no URI with '$*': $(cat "$dir/run.err")"
  expect "the size with '$*'" "$(nbdinfo --size "$uri")" $((16 << 20))
  kill -TERM "$script"
  reap "$script"
  expect "the status of scripts/run $*" "$status" 0
  ! alive "$served" || fail "the server was left behind"
  [ -z "$(find "$dir" -maxdepth 1 -name 'xbd-run-*')" ] || fail "its directory was left behind"
}

try
contains "what it said of itself" "$(cat "$dir/run.out")" "nbdinfo '$uri'"
try --tcp 127.0.0.1:0
contains "its URI" "$uri" "nbd://127.0.0.1:"
try "--tcp=0"
contains "its URI" "$uri" "nbd://127.0.0.1:"
try --socket "$dir/mine"
contains "its URI" "$uri" "$dir/mine"
