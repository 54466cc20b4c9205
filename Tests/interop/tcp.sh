#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# --tcp serves on the loopback address, on a port of the system's choice when it is 0.
# profile: default; it is about the socket
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires nbdinfo nbdcopy ss

serve_plain memory:16M --tcp 0
case $uri in
  nbd://127.0.0.1:*/ | nbd://127.0.0.1:*) ;;
  *) fail "a URI for the loopback address was to be expected, not $uri" ;;
esac
random_file "$dir/in" $((16 << 20))
nbdcopy "${flush_option[@]}" --connections=2 "$dir/in" "$uri"
nbdcopy "$uri" - | cmp - "$dir/in"
port=${uri##*:}
port=${port%%/*}
contains "what is listened on" "$(ss -Hltn "sport = :$port")" "127.0.0.1:$port"
refused "$port" "$XBD_USER" serve --loopback memory:1M --tcp "$port"
nbdinfo --size "$uri" >/dev/null
stop
