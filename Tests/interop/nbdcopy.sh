#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# nbdcopy in and out, with several connections, gives back every byte.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires nbdcopy

random_file "$dir/in" $((64 << 20))
# Holes in the middle, so that zeroes are written as zeroes.
fallocate -p -o $((20 << 20)) -l $((10 << 20)) "$dir/in"
serve "$dir/disk.img" --size 64M
nbdcopy "${flush_option[@]}" --connections=4 "$dir/in" "$uri"
nbdcopy --connections=4 "$uri" "$dir/out"
cmp "$dir/in" "$dir/out"
nbdcopy --synchronous "$uri" "$dir/out2"
cmp "$dir/in" "$dir/out2"
stop
cmp "$dir/in" "$dir/disk.img"
# A second server on the same image, and memory to memory.
serve "$dir/disk.img"
from=$uri
serve memory:64M
nbdcopy "$from" "$uri"
nbdcopy "$uri" - | cmp - "$dir/in"
stop
