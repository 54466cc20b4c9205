#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Options out of range, and a device without a Xen, end with a clear message and a status of their own.
# backend: own; nothing is served
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/loopback.sh"

complains() {
  local word=$1 status=0
  shift
  timeout 30 "$XBD_USER" "$@" >"$dir/out" 2>"$dir/said" </dev/null || status=$?
  if [ $status = 0 ] || [ $status -ge 124 ]; then fail "'$*' ended with $status: $(cat "$dir/said")"; fi
  contains "'$*'" "$(cat "$dir/said")" "$word"
}
complains "1000" serve --loopback memory:1M --sector-size 1000
# What is no size of a sector is a sentence, not an arithmetic trap.
for size in 0 -512 1024; do
  complains "--sector-size takes 512 or 4096" serve --loopback memory:1M "--sector-size=$size"
  complains "--sector-size takes 512 or 4096" measure --loopback memory:1M "--sector-size=$size"
  complains "--sector-size takes 512 or 4096" backend memory:1M --loopback "$dir" "--sector-size=$size"
done
complains "--ring-order" serve --loopback memory:1M --ring-order 9
complains "--queues" serve --loopback memory:1M --queues 0
complains "--indirect" serve --loopback memory:1M --indirect 5000
complains "--copy" serve --loopback memory:1M --copy sideways
complains "--loopback" serve
complains "nonsense" serve --loopback memory:1M --nonsense
complains "nonsense" nonsense
complains "--socket" serve --loopback memory:1M --socket ''
complains "--gntalloc-limit" serve xvda --loopback "$dir" --gntalloc-limit 100
complains "--size" serve xvda --loopback "$dir" --size 1M
complains "--reconnect" serve --loopback memory:1M --reconnect-timeout 5
complains "path names" backend memory:1M /local/domain/0/backend/vbd/1/51728 --loopback "$dir" --vdev xvdb
complains "--size" measure xvda --loopback "$dir" --size 1M
complains "--size" serve --loopback "raw:$dir/disk.img" --backend none --size 1M
[ -e /dev/xen ] || {
  refused "--loopback" "$XBD_USER" serve xvdb
  refused "--loopback" "$XBD_USER" serve 51728
}
complains "$dir" serve xvda --loopback "$dir"

# The directory of a host where an image is to be named.
start_host
refused "name one of its devices" "$XBD_USER" serve --loopback "$xen"
refused "name one of its devices" "$XBD_USER" serve --loopback "$xen" --backend process
refused "name one of its devices" "$XBD_USER" measure --loopback "$xen"
refused "name one of its devices" "$XBD_USER" backend "$xen" --loopback "$xen"
end "$host" host

"$XBD_USER" --help >/dev/null
"$XBD_USER" serve --help >/dev/null
