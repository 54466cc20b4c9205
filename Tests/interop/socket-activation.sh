#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# `nbdinfo [ SERVER ]` and `nbdcopy [ SERVER ]` start the server by socket activation.
# profile: default; it is about the socket
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires nbdinfo nbdcopy

disk memory:64M
expect "size" "$(timeout 60 nbdinfo --size -- [ "$XBD_USER" serve --loopback "${disk[@]}" "${serve_args[@]}" ])" $((64 << 20))
random_file "$dir/in" $((8 << 20))
cp "$dir/in" "$dir/disk.img"
disk "$dir/disk.img"
timeout 60 nbdcopy -- [ "$XBD_USER" serve --loopback "${disk[@]}" "${serve_args[@]}" ] "$dir/out"
cmp "$dir/in" "$dir/out"
