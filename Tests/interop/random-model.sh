#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# timeout: 300
# Random reads, writes, zeroes, trims and flushes, aligned and not, agree with a model of every byte: through rings of
# every order, both ways of copying, and with QEMU on a raw image and on a qcow2. XBD_SOAK_SEED repeats a run.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires python3-libnbd qemu-img

seconds=${XBD_MODEL_SECONDS:-2}
formats=raw
[ "$backend" != qemu ] || formats='raw qcow2'
for format in $formats; do
  for order in 0 1 2 3 4; do
    # The largest ring is bounced as well.
    for copy in direct $([ $order != 4 ] || echo bounce); do
      qemu-img create -q -f "$format" "$dir/disk.$format" 48M
      serve "$dir/disk.$format" --ring-order "$order" --copy "$copy"
      contains "size" "$(nbdinfo --size "$uri")" $((48 << 20))
      echo "$format, ring order $order, $copy"
      # The model of a qcow2 is compared with what QEMU itself reads out of it.
      XBD_SOAK_MODEL=$dir/model libnbd "$seconds" "$([ "$format" = qcow2 ] || echo "$dir/disk.raw")" <"$here/soak.py"
      stop
      [ "$format" = raw ] || qemu-img check -q "$dir/disk.qcow2"
      qemu-img compare -q -f "$format" -F raw "$dir/disk.$format" "$dir/model"
      rm "$dir/disk.$format" "$dir/model"
    done
  done
done
