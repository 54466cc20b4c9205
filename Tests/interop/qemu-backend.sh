#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# timeout: 300
# QEMU's own block backend, as Debian ships it, serves a disk on a loopback host: read, write, flush, discard, rings
# of every order, detach and attach again, qcow2.
# backend: own; it starts host and QEMU itself
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/loopback.sh"
requires /usr/libexec/xen-qemu-system-i386 xenstore-write nbdcopy nbdinfo qemu-img python3-libnbd

start_host
LD_DEBUG=bindings LD_DEBUG_OUTPUT=$dir/bindings start_qemu
truncate -s 32M "$dir/disk.img"
attach qdisk 51712 "raw:$dir/disk.img"
eventually backend_is 2
# Every function of Xen's libraries that QEMU imports is ours, xenstore's apart.
imported=$(cat "$dir"/bindings.* | grep -E 'binding file /usr/libexec/xen-qemu' | grep -E "symbol .(xc_|xen)")
[ "$(wc -l <<<"$imported")" -ge 10 ] || fail "QEMU is said to import hardly any of Xen's functions: $imported"
foreign=$(grep -vc libxenloopback.so <<<"$imported" || true)
expect "functions that are not the drop-in's" "$foreign" 0
rm -f "$dir"/bindings.*

random_file "$dir/in" $((32 << 20))
for order in 0 1 2 3 4; do
  start_front 51712 --ring-order "$order"
  expect "ring pages at order $order" \
    "$(dom0 xenstore-ls -f "$front" | grep -c -E '/ring-ref[0-9]* =')" $((1 << order))
  nbdcopy --flush "$dir/in" "$uri"
  nbdcopy "$uri" - | cmp - "$dir/in"
  cmp "$dir/disk.img" "$dir/in"
  libnbd <<'PY'
import nbdtools

h = nbdtools.connect()
h.pwrite(bytes(65536), 0)
h.flush()
h.trim(1 << 20, 1 << 20)
h.flush()
assert h.pread(65536, 0) == bytes(65536)
assert h.pread(1 << 20, 1 << 20) == bytes(1 << 20)
h.zero(4096, 8192)
assert h.pread(4096, 8192) == bytes(4096)
PY
  stop
  eventually backend_is 6
done
[ "$(stat -c %b "$dir/disk.img")" -lt $((32 << 11)) ] || fail "discard freed nothing"

# Detach, and attach another disk under the same number: a qcow2 this time.
detach
qemu-img create -q -f qcow2 "$dir/disk.qcow2" 32M
attach qdisk 51712 "qcow2:$dir/disk.qcow2"
eventually backend_is 2
start_front 51712
nbdcopy --flush "$dir/in" "$uri"
nbdcopy "$uri" - | cmp - "$dir/in"
stop
detach
qemu-img convert -U -O raw "$dir/disk.qcow2" "$dir/out"
cmp "$dir/out" "$dir/in"

# The frontend through libxen as well, as in a domU: no --loopback.
attach qdisk 51712 "raw:$dir/disk.img"
eventually backend_is 2
start front "$XBD_USER" loopback exec --domain 1 "$xen" -- "$XBD_USER" serve 51712 --socket "$dir/s"
server=$pid
await_uri front
nbdcopy --flush "$dir/in" "$uri"
nbdcopy "$uri" - | cmp - "$dir/in"
stop

[ ! -s "$dir/qemu.err" ] || fail "QEMU or the drop-in complained: $(cat "$dir/qemu.err")"
end "$qemu" QEMU
end "$host" host
