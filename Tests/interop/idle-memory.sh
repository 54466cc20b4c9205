#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# An idle server with one device stays under 30 MiB resident, and does not burn the processor.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires nbdcopy

resident() { awk '/^VmRSS:/ { print $2 }' "/proc/$server/status"; }
ticks() { awk '{ print $14 + $15 }' "/proc/$server/stat"; }

serve "$dir/disk.img" --size 256M
[ "$(resident)" -lt 30720 ] || fail "$(resident) KiB resident before the first client"
nbdcopy "$uri" null:
nbdcopy "$uri" null:
sleep 1
[ "$(resident)" -lt 30720 ] || fail "$(resident) KiB resident after two copies"
before=$(ticks)
sleep 3
used=$(($(ticks) - before))
# Three seconds are 300 ticks.
[ $used -le 9 ] || fail "an idle server used $used hundredths of a second of processor in 3 s"
stop
