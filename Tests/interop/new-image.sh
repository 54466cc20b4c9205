#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# --size makes an image where there is none, or an empty file; one that holds something stays as it is, and what is refused
# makes none.
# profile: default; it is about the file
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires nbdinfo

serve "$dir/new.img" --size 1M
expect "the size of a new image" "$(nbdinfo --size "$uri")" $((1 << 20))
stop

# As mktemp makes it, or whoever was killed in the middle of making it.
: >"$dir/empty.img"
serve "$dir/empty.img" --size 1M
expect "the size of an image that was empty" "$(nbdinfo --size "$uri")" $((1 << 20))
stop

random_file "$dir/full.img" $((2 << 20))
before=$(sum "$dir/full.img")
serve "$dir/full.img" --size 1M
expect "the size of an image that was there" "$(nbdinfo --size "$uri")" $((2 << 20))
stop
expect "the image that was there" "$(sum "$dir/full.img")" "$before"

[ "$backend" != qemu ] || exit 0
for word in junk error:write@0; do
  : >"$dir/empty.img"
  refused "fault" "$XBD_USER" serve --backend "$backend" --loopback "$dir/none.img" --size 1M --fault "$word"
  refused "fault" "$XBD_USER" serve --backend "$backend" --loopback "$dir/empty.img" --size 1M --fault "$word"
  refused "fault" "$XBD_USER" measure --loopback "$dir/none.img" --size 1M --load write --overwrite --fault "$word"
  [ ! -e "$dir/none.img" ] || fail "an image was made by a command that was refused"
  [ ! -s "$dir/empty.img" ] || fail "an image got a size by a command that was refused"
done
