#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# serve --reconnect makes an image once: where it is gone when the backend is followed by another one, clients are not given
# an empty disk in its place. The server waits for it, and ends with a sentence when it does not come back.
# backend: own; it kills a backend in a process of its own
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires python3-libnbd

# A disk of memory goes with its backend.
refused "name a file" "$XBD_USER" serve --loopback memory:64M --backend process --reconnect

missed() { grep -q "there is no image $dir/disk.img" "$dir/server$servers.err"; }
reconnected() { grep -q "connected again" "$dir/server$servers.err"; }
# Another backend says that there is no image, or serves one that it has made.
is_followed() { missed || reconnected; }

# take_away PATIENCE: a server whose client has written and flushed, whose image is moved and whose backend is killed.
take_away() {
  local helper
  serve "$dir/disk.img" --size 16M --backend process --reconnect --reconnect-timeout "$1"
  libnbd <<'PY'
from nbdtools import connect
handle = connect()
handle.pwrite(b"\x5a" * 4096, 0)
handle.flush()
handle.shutdown()
PY
  helper=$(pgrep -P "$server")
  mv "$dir/disk.img" "$dir/kept.img"
  kill -KILL "$helper"
  eventually is_followed
  [ ! -e "$dir/disk.img" ] || fail "an image was made where the one that was served is gone"
}

take_away 5
reap "$server"
expect "the status of a server whose image is gone" "$status" 1
contains "the sentence" "$(tail -n 1 "$dir/server$servers.err")" "no backend has connected for 5 s"
[ ! -e "$dir/disk.img" ] || fail "an image was made where the one that was served is gone"
expect "the size of the image that was moved" "$(stat -c %s "$dir/kept.img")" $((16 << 20))

# One that comes back is served again, with what was written.
rm "$dir/kept.img"
take_away 60
mv "$dir/kept.img" "$dir/disk.img"
eventually reconnected
libnbd <<'PY'
from nbdtools import connect
handle = connect()
assert handle.get_size() == 16 << 20
assert bytes(handle.pread(4096, 0)) == b"\x5a" * 4096, "another disk than the one that was served"
handle.shutdown()
PY
stop
