#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# A block device that somebody has mounted is not served for writing; when it is let go of, it is.
# profile: default; what it is about is how the device is opened
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires root loop mkfs.ext4 nbdinfo

truncate -s 16M "$dir/image"
device=$(losetup -f --show "$dir/image")
# It goes by itself when nobody has it open any more.
exec 9<"$device"
losetup -d "$device"
mkfs.ext4 -q "$device"
mkdir "$dir/mount"
mount "$device" "$dir/mount"
mounted+=("$dir/mount")
disk "$device"
refused "in use" "$XBD_USER" serve --loopback "${disk[@]}" --socket "$dir/s"
[ "$backend" != qemu ] || refused "in use" "$XBD_USER" serve --loopback "raw:$device" --backend qemu --socket "$dir/s"
umount "$dir/mount"

serve "$device"
expect "size" "$(nbdinfo --size "$uri")" $((16 << 20))
# Nobody else gets it meanwhile.
refused "in use" "$XBD_USER" serve --loopback "$device" --socket "$dir/s"
stop
