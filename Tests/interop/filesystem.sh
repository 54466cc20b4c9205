#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# timeout: 300
# A filesystem made, filled, checked and mounted again over nbdfuse and a loop device.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires nbdfuse mkfs.ext4 fsck.ext4 fusermount3 root fuse loop

serve "$dir/disk.img" --size 256M
mkdir "$dir/fuse" "$dir/mnt"

attach() {
  start fuse nbdfuse "$dir/fuse/nbd" "$uri"
  fuse=$pid
  eventually test -e "$dir/fuse/nbd"
  mounted=("$dir/mnt" "$dir/fuse")
}
detach() {
  eventually fusermount3 -u "$dir/fuse"
  mounted=()
  reap "$fuse"
}

attach
mkfs.ext4 -q -F "$dir/fuse/nbd"
mount -o loop "$dir/fuse/nbd" "$dir/mnt"
mkdir "$dir/mnt/tree"
for n in $(seq 1 200); do random_file "$dir/mnt/tree/$n" $((n * 1777)); done
random_file "$dir/mnt/big" $((64 << 20))
(cd "$dir/mnt" && find . -type f -exec sha256sum {} + | sort) >"$dir/sums"
umount "$dir/mnt"
fsck.ext4 -fn "$dir/fuse/nbd" >"$dir/fsck.log" 2>&1 || fail "fsck: $(cat "$dir/fsck.log")"
detach

# Again, by a server that knows nothing of the first.
stop
serve "$dir/disk.img"
attach
mount -o loop "$dir/fuse/nbd" "$dir/mnt"
(cd "$dir/mnt" && find . -type f -exec sha256sum {} + | sort) >"$dir/sums2"
rm -r "$dir/mnt/tree"
umount "$dir/mnt"
fsck.ext4 -fn "$dir/fuse/nbd" >"$dir/fsck.log" 2>&1 || fail "fsck: $(cat "$dir/fsck.log")"
detach
cmp "$dir/sums" "$dir/sums2"
expect "files" "$(wc -l <"$dir/sums")" 201
stop
fsck.ext4 -fn "$dir/disk.img" >/dev/null 2>&1 || fail "the image itself does not pass fsck"
