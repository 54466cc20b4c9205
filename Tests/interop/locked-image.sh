#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# An image has one writer: a second server is refused, and may have it as soon as the first is gone, however it went.
# profile: default; the lock is the image's
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires nbdinfo

serve "$dir/disk.img" --size 16M
refused "$dir/disk.img" "$XBD_USER" serve --loopback "$dir/disk.img" --socket "$dir/other.sock"
refused "$dir/disk.img" "$XBD_USER" serve --loopback "$dir/disk.img" --socket "$dir/other.sock" --read-only
nbdinfo --size "$uri" >/dev/null
kill_hard "$server"
serve "$dir/disk.img"
nbdinfo --size "$uri" >/dev/null
stop
