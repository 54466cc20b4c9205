#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The socket is for its owner alone; without --socket its directory is too, and is cleared away.
# profile: default; it is about the socket
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires nbdinfo

umask 000
serve memory:16M
expect "mode" "$(stat -c %a "$socket")" 600
stop
serve_plain memory:16M
own=${uri#*socket=}
expect "mode of its own socket" "$(stat -c %a "$own")" 600
expect "mode of the directory" "$(stat -c %a "$(dirname "$own")")" 700
nbdinfo --size "$uri" >/dev/null
stop
[ ! -e "$own" ] || fail "$own was left behind"
[ ! -e "$(dirname "$own")" ] || fail "$(dirname "$own") was left behind"
