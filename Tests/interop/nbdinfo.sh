#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# nbdinfo shows the export: size, block sizes, flags, allocation.
# profile: each; what clients are told of flush, FUA and trim
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires nbdinfo python3-libnbd

serve "$dir/disk.img" --size 16M --export data
expect "size" "$(nbdinfo --size "$uri")" $((16 << 20))
nbdinfo --json "$uri" >"$dir/info.json"
libnbd "$dir/info.json" <<'PY'
import json, sys
from nbdtools import CAN_FLUSH, CAN_TRIM
info = json.load(open(sys.argv[1]))
assert info["protocol"] == "newstyle-fixed", info
export = info["exports"][0]
assert export["export-size"] == 16 << 20, export
assert export["is_read_only"] is False, export
wanted = dict.fromkeys(("can_zero", "can_multi_conn", "can_df"), True)
wanted.update(can_flush=CAN_FLUSH, can_fua=CAN_FLUSH, can_trim=CAN_TRIM)
for ability, answer in wanted.items():
    assert export[ability] is answer, (ability, export)
assert export["block_size_minimum"] in (1, 512), export
assert export["block_size_maximum"] >= 32 << 20, export
assert "base:allocation" in export["contexts"], export
PY
nbdinfo --map "$uri" >"$dir/map"
expect "the map's total" "$(awk '{ sum += $2 } END { print sum }' "$dir/map")" $((16 << 20))
contains "the list of exports" "$(nbdinfo --list "nbd+unix:///?socket=$socket")" '"data"'
[ ${#flush_option[@]} = 0 ] || nbdinfo --can flush "$uri"
nbdinfo --can multi-conn "$uri"
status=0
nbdinfo "nbd+unix:///nonesuch?socket=$socket" >/dev/null 2>&1 || status=$?
[ $status != 0 ] || fail "an export that is not there was found"
stop
