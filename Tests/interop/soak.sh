#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# timeout: 900
# Mixed clients on one disk, each byte checked against a model; XBD_SOAK_SECONDS says for how long.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires python3-libnbd

seconds=${XBD_SOAK_SECONDS:-20}
serve "$dir/disk.img" --size 64M --queues 2
libnbd "$seconds" "$dir/disk.img" <"$here/soak.py"
stop
