#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# At the end the device is flushed; a flush that fails then is said, and is the server's status. A backend's process stays
# for it, though whoever ends a service tells every process of it to end.
# backend: own; what fails is an option of the reference backend
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires python3-libnbd

write_something() {
  libnbd <<'PY'
from nbdtools import connect
handle = connect()
handle.pwrite(b"\x5a" * 4096, 0)
# Without the flush that some clients send behind our back.
handle.aio_disconnect(0)
PY
}

backend=reference
serve memory:1M --fault error:flush@1+
write_something
kill -TERM "$server"
reap "$server"
expect "the status of a server whose last flush failed" "$status" 1
contains "what it said" "$(cat "$dir/server$servers.err")" "could not be flushed"

# The command of --run has done well, the disk has not.
refused "could not be flushed" "$XBD_USER" serve --loopback memory:1M --fault error:flush@1+ --run true

# One that is never answered is said as well, whoever ends the server.
refused "does not answer" "$XBD_USER" serve --loopback memory:1M --fault drop:flush@1+ --run true

serve memory:1M
write_something
stop

# has_taken PROCESS: SIGTERM is no longer on its way to it.
has_taken() {
  alive "$1" || return 0
  /usr/bin/python3 - "$1" <<'PY'
import re, signal, sys
status = open(f"/proc/{sys.argv[1]}/status").read()
pending = [int(mask, 16) for mask in re.findall(r"^(?:Sig|Shd)Pnd:\s*(\w+)$", status, re.M)]
sys.exit(any(mask >> (signal.SIGTERM - 1) & 1 for mask in pending))
PY
}
serve "$dir/disk.img" --size 1M --backend process
helper=$(pgrep -P "$server")
kill -TERM "$helper"
eventually has_taken "$helper"
write_something
cmp <(head -c 4096 /dev/zero | tr '\0' '\132') <(head -c 4096 "$dir/disk.img") || fail "the server no longer serves"
alive "$helper" || fail "the backend's process has ended before the server"
# First the one, then the other, and nothing of it waits.
kill -TERM "$helper"
stop
! alive "$helper" || fail "the backend's process was left behind"
cmp <(head -c 4096 /dev/zero | tr '\0' '\132') <(head -c 4096 "$dir/disk.img")

# Without the server it ends, whatever it was told before.
serve "$dir/disk.img" --backend process
helper=$(pgrep -P "$server")
started+=("$helper")
kill -TERM "$helper"
eventually has_taken "$helper"
kill_hard "$server"
has_ended() { ! alive "$helper"; }
eventually has_ended
