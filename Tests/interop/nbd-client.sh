#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# nbd-client lists the exports.
# profile: default; the list of exports knows no backend
set -euo pipefail
. "$(dirname "$0")/lib.sh"
PATH=$PATH:/usr/sbin:/sbin
requires nbd-client

serve memory:16M --export disk0
nbd-client -l -unix "$socket" >"$dir/list" 2>&1 || fail "$(cat "$dir/list")"
contains "the list" "$(cat "$dir/list")" disk0
# It is still served.
nbd-client -l -unix "$socket" >/dev/null 2>&1
stop
