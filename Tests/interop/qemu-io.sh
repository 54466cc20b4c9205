#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# qemu-io writes, reads, discards and zeroes by pattern, aligned and not.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires qemu-io

serve memory:64M
qemu-io -f raw \
  -c 'write -P 0xa5 0 64k' -c 'read -P 0xa5 0 64k' \
  -c 'write -P 0x5a 4095 2' -c 'read -P 0x5a 4095 2' -c 'read -P 0xa5 0 4095' -c 'read -P 0xa5 4097 61439' \
  -c 'write -z 8k 8k' -c 'read -P 0 8k 8k' -c 'read -P 0xa5 16k 48k' \
  -c 'write -z -u 16k 8k' -c 'read -P 0 16k 8k' \
  -c 'discard 32k 16k' \
  -c 'write -f -P 0x33 1M 1M' -c 'read -P 0x33 1M 1M' \
  -c 'aio_write -P 0x44 8M 4M' -c 'aio_write -P 0x45 12M 4M' -c 'aio_flush' \
  -c 'read -P 0x44 8M 4M' -c 'read -P 0x45 12M 4M' -c 'flush' "$uri" >"$dir/io" 2>&1 || fail "$(cat "$dir/io")"
if grep -iE 'verification failed|error|failed' "$dir/io"; then fail "see above"; fi
stop
