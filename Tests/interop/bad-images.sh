#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# An image that cannot be served is refused at once, with one sentence that says what and which.
# profile: default; an image that is refused meets no backend
set -euo pipefail
. "$(dirname "$0")/lib.sh"

xbd() { refused "$1" "$XBD_USER" serve --backend "$backend" --socket "$dir/s" --loopback "${@:2}"; }

xbd "$dir/missing.img" "$dir/missing.img"
[ ! -e "$dir/missing.img" ] || fail "the image was created without --size"
xbd "$dir/none/disk.img" "$dir/none/disk.img" --size 1M
mkdir "$dir/folder"
xbd "$dir/folder" "$dir/folder"
truncate -s 1000 "$dir/odd.img"
xbd "512" "$dir/odd.img"
truncate -s 5120 "$dir/odd4k.img"
[ "$backend" = qemu ] || xbd "4096" "$dir/odd4k.img" --sector-size 4096
truncate -s 0 "$dir/empty.img"
xbd "$dir/empty.img" "$dir/empty.img"
truncate -s 1M "$dir/secret.img"
chmod 000 "$dir/secret.img"
if [ "$(id -u)" = 0 ]; then
  # Root may read everything; a user without rights may not.
  chmod 755 "$dir"
  if command -v setpriv >/dev/null && setpriv --reuid=65534 --regid=65534 --clear-groups test -x "$XBD_USER"; then
    mkdir -m 777 "$dir/open"
    refused "$dir/secret.img" setpriv --reuid=65534 --regid=65534 --clear-groups \
      "$XBD_USER" serve --backend "$backend" --socket "$dir/open/s" --loopback "$dir/secret.img"
  fi
else
  xbd "$dir/secret.img" "$dir/secret.img"
fi
mkfifo "$dir/fifo"
xbd "$dir/fifo" "$dir/fifo"
xbd "$dir/fifo" "$dir/fifo" --read-only
xbd "not created" "$dir/missing.img" --read-only --size 1M
if [ "$backend" = qemu ]; then
  # What only QEMU finds wrong.
  printf 'QFI\xfb%0508d' 0 >"$dir/broken.qcow2"
  xbd "$dir/broken.qcow2" "$dir/broken.qcow2"
  # What a client may have written into a raw disk.
  cp "$dir/broken.qcow2" "$dir/raw.img"
  xbd "qcow2:$dir/raw.img" "$dir/raw.img"
  xbd "--size" "raw:$dir/raw.img" --size 1M
  xbd "nonesuch" "nonesuch:$dir/odd4k.img"
  [ ! -e "$dir/s" ] || fail "a socket was left behind by a refused image"
  exit 0
fi
for spec in memory: memory:x memory:-1 memory:0 null: null:1Q; do xbd size "$spec"; done
xbd 512 memory:1000
[ ! -e "$dir/s" ] || fail "a socket was left behind by a refused image"
