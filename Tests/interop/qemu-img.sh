#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# qemu-img converts in and out, compares, and finds holes.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires qemu-img

random_file "$dir/in.raw" $((24 << 20))
truncate -s 64M "$dir/in.raw"
qemu-img convert -f raw -O qcow2 "$dir/in.raw" "$dir/in.qcow2"
serve "$dir/disk.img" --size 64M
contains "qemu-img info" "$(qemu-img info "$uri")" "virtual size: 64 MiB"
qemu-img convert -n -f qcow2 -O raw "$dir/in.qcow2" "$uri"
qemu-img compare -f raw -F raw "$dir/in.raw" "$uri"
qemu-img compare -f qcow2 -F raw "$dir/in.qcow2" "$uri"
qemu-img convert -f raw -O qcow2 "$uri" "$dir/out.qcow2"
qemu-img check "$dir/out.qcow2"
qemu-img compare -f qcow2 -F qcow2 "$dir/in.qcow2" "$dir/out.qcow2"
qemu-img map --output=json "$uri" >/dev/null

# A qcow2 of its own inside the export, checked there.
nbd="driver=qcow2,file.driver=nbd,file.server.type=unix,file.server.path=$socket"
qemu-img create -q -f qcow2 "$uri" 32M
qemu-io -c 'write -P 7 1M 3M' -c 'flush' --image-opts "$nbd" >/dev/null
qemu-img check --image-opts "$nbd"
stop
