#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# With few pages to share the pool is smaller, says so, and everything still works.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires nbdcopy

random_file "$dir/in" $((16 << 20))
for pages in 64 24; do
  serve memory:16M --gntalloc-limit $pages
  nbdcopy "${flush_option[@]}" --connections=2 "$dir/in" "$uri"
  nbdcopy --connections=2 "$uri" - | cmp - "$dir/in"
  contains "what the server said" "$(cat "$dir/server$servers.err")" "limit"
  stop
done
