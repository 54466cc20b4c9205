#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# timeout: 600
# Every combination of --copy, --grants, rings, segments and backends gives back every byte.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires nbdcopy fio

random_file "$dir/in" $((16 << 20))
try() {
  serve memory:16M "$@"
  nbdcopy --connections=2 "$dir/in" "$uri"
  nbdcopy --connections=2 "$uri" - | cmp - "$dir/in" || fail "with $*"
  timeout 60 fio --name=verify --ioengine=nbd --uri="$uri" --rw=randwrite --bsrange=4k-64k --blockalign=4096 --serialize_overlap=1 --iodepth=16 \
    --size=16M --io_size=8M --verify=crc32c --verify_fatal=1 --verify_state_save=0 --output="$dir/fio.log" >/dev/null 2>&1 ||
    fail "fio with $*: $(tail -n 12 "$dir/fio.log")"
  stop
}
# Options of the frontend that both backends understand…
for copy in bounce direct; do
  for grants in persistent per-request; do
    try --copy $copy --grants $grants
    # QEMU has one queue and no indirect requests: it is given less than was asked for.
    try --copy $copy --grants $grants --queues 2 --ring-order 0 --indirect 1
  done
done
try --ring-order 4 --indirect 4096
try --indirect 11
try --no-persistent

# … and those of the reference backend.
[ "$backend" != qemu ] || exit 0
try --ring-order 4 --indirect 4096 --backend-segments 4096
try --backend-segments 0
try --no-backend-persistent
try --max-persistent 7
try --single-mapping
try --grant-copy
large_sectors
[ ${#large[@]} = 0 ] || try "${large[@]}"
try --no-flush --no-barrier --no-discard
