#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# timeout: 300
# fio writes blocks that carry their own checksums and reads them back, at several sizes, depths and connections.
# profile: each; data
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires fio

verify() {
  local name=$1
  shift
  timeout 120 fio --name="$name" --verify_state_save=0 --ioengine=nbd --uri="$uri" --verify=crc32c --verify_fatal=1 --do_verify=1 \
    --group_reporting --output="$dir/fio.log" "$@" >/dev/null 2>&1 || fail "fio $name: $(head -n 12 "$dir/fio.log")"
}

serve "$dir/disk.img" --size 64M
verify small --rw=randwrite --bs=4k --iodepth=32 --size=32M
# Two writes in flight that overlap may end either way round: fio keeps them apart, as it does by itself for one size.
verify odd --rw=randwrite --bsrange=512-12k --serialize_overlap=1 --iodepth=16 --size=16M
verify medium --rw=write --bs=128k --iodepth=8 --size=64M
verify large --rw=randwrite --bs=1M --iodepth=4 --size=64M
verify single --rw=randwrite --bs=4k --iodepth=1 --size=4M
verify pair --rw=randwrite --bs=4k --iodepth=32 --size=32M --numjobs=2 --offset_increment=32M
# fio takes a flush that is not offered for an error.
[ ${#flush_option[@]} = 0 ] || verify fsync --rw=randwrite --bs=8k --iodepth=8 --size=8M --fsync=16
stop
