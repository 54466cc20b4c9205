#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# At the end the device is flushed; a flush that fails then is said, and is the server's status.
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
