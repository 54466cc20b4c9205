#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# timeout: 300
# QEMU's own block backend, as Debian ships it, serves a disk on a loopback host: read, write, flush, discard, rings
# of every order, detach and attach again, qcow2.
# backend: own; it starts host and QEMU itself
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires /usr/libexec/xen-qemu-system-i386 xenstore-write nbdcopy nbdinfo qemu-img python3-libnbd

xen=$dir/xen
start host "$XBD_USER" loopback "$xen"
host=$pid
eventually test -s "$dir/host.out"

dom0() { "$XBD_USER" loopback exec "$xen" -- "$@"; }
back=/local/domain/0/backend/qdisk/1/51712
front=/local/domain/1/device/vbd/51712

# What libxl writes for a disk that QEMU serves.
attach() {
  dom0 xenstore-write $back/frontend $front $back/frontend-id 1 $back/online 1 $back/removable 0 \
    $back/bootable 1 $back/dev xvda $back/type qdisk $back/mode w $back/device-type disk \
    $back/discard-enable 1 $back/params "$1" $back/state 1 $front/backend $back $front/backend-id 0 \
    $front/virtual-device 51712 $front/device-type disk $front/state 1
  dom0 xenstore-chmod -r $front n1 r0
  dom0 xenstore-chmod -r $back n0 r1
}
state_is() { [ "$(dom0 xenstore-read "$1/state")" = "$2" ]; }
is_gone() { ! dom0 xenstore-read "$1/state"; }
# As `xl block-detach` does; QEMU removes its device, the toolstack the nodes.
detach() {
  dom0 xenstore-write $back/online 0 $back/state 5
  eventually eval "is_gone $back || state_is $back 6"
  dom0 xenstore-rm $back
  dom0 xenstore-rm $front
}
front() {
  start front "$XBD_USER" serve 51712 --loopback "$xen" --socket "$dir/s" "$@"
  server=$pid
  await_uri front
}

start qemu env LD_DEBUG=bindings LD_DEBUG_OUTPUT="$dir/bindings" \
  "$XBD_USER" loopback exec "$xen" -- /usr/libexec/xen-qemu-system-i386 -M xenpv -xen-attach -xen-domid 1 \
  -nographic -nodefaults -no-user-config -monitor none -serial none -parallel none
qemu=$pid
truncate -s 32M "$dir/disk.img"
attach "raw:$dir/disk.img"
eventually state_is $back 2
# Every function of Xen's libraries that QEMU imports is ours, xenstore's apart.
foreign=$(cat "$dir"/bindings.* | grep -E 'binding file /usr/libexec/xen-qemu' | grep -E "symbol .(xc_|xen)" | grep -vc libxenloopback.so || true)
expect "functions that are not the drop-in's" "$foreign" 0
rm -f "$dir"/bindings.*

random_file "$dir/in" $((32 << 20))
for order in 0 1 2 3 4; do
  front --ring-order "$order"
  expect "ring pages at order $order" \
    "$(dom0 xenstore-ls -f $front | grep -c -E '/ring-ref[0-9]* =')" $((1 << order))
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
  eventually state_is $back 6
done
[ "$(stat -c %b "$dir/disk.img")" -lt $((32 << 11)) ] || fail "discard freed nothing"

# Detach, and attach another disk under the same number: a qcow2 this time.
detach
qemu-img create -q -f qcow2 "$dir/disk.qcow2" 32M
attach "qcow2:$dir/disk.qcow2"
eventually state_is $back 2
front
nbdcopy --flush "$dir/in" "$uri"
nbdcopy "$uri" - | cmp - "$dir/in"
stop
detach
qemu-img convert -U -O raw "$dir/disk.qcow2" "$dir/out"
cmp "$dir/out" "$dir/in"

# The frontend through libxen as well, as in a domU: no --loopback.
attach "raw:$dir/disk.img"
eventually state_is $back 2
start front "$XBD_USER" loopback exec --domain 1 "$xen" -- "$XBD_USER" serve 51712 --socket "$dir/s"
server=$pid
await_uri front
nbdcopy --flush "$dir/in" "$uri"
nbdcopy "$uri" - | cmp - "$dir/in"
stop

[ ! -s "$dir/qemu.err" ] || fail "QEMU or the drop-in complained: $(cat "$dir/qemu.err")"
kill -TERM "$qemu"
reap "$qemu"
kill -TERM "$host"
reap "$host"
expect "host's status" "$status" 0
