# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# For scripts that start a loopback host, a backend and a frontend as processes of their own, and that are its toolstack.
# Sourced after lib.sh.
#
# shellcheck disable=SC2034,SC2154 # what the scripts use, and what lib.sh sets

xen=$dir/xen

# start_host [OPTION…]: a host. Sets $host, its process.
start_host() {
  start host "$XBD_USER" loopback "$xen" "$@"
  host=$pid
  eventually test -s "$dir/host.out"
}

# start_backend IMAGE [OPTION…]: the reference backend. Sets $back_process.
start_backend() {
  start backend "$XBD_USER" backend "$1" --loopback "$xen" "${@:2}"
  back_process=$pid
  eventually test -s "$dir/backend.out"
}

# start_qemu [OPTION…]: QEMU, which serves disks of domain 1 that are attached as qdisk. Sets $qemu.
start_qemu() {
  start qemu "$XBD_USER" loopback exec "$xen" -- /usr/libexec/xen-qemu-system-i386 -M xenpv -xen-attach -xen-domid 1 \
    -nographic -nodefaults -no-user-config -monitor none -serial none -parallel none "$@"
  qemu=$pid
}

# start_front DEVICE [OPTION…]: a frontend. Sets $server and $uri.
start_front() {
  start front "$XBD_USER" serve "$1" --loopback "$xen" --socket "$dir/s" "${@:2}"
  server=$pid
  await_uri front
}

# end PROCESS WHAT: SIGTERM, after which it must end with 0.
end() {
  kill -TERM "$1"
  reap "$1"
  expect "the $2's status" "$status" 0
}

# dom0 COMMAND…: with Debian's xenstore tools in domain 0.
dom0() { XENSTORED_PATH=$xen/dom0/xenstored.sock "$@"; }

# attach KIND NUMBER PARAMS [MODE]: the nodes that libxl writes for a disk of domain 1, states last. Sets $back and
# $front, their directories.
attach() {
  local letters=abcdefghijklmnop type=phy
  [ "$1" = vbd ] || type=$1
  back=/local/domain/0/backend/$1/1/$2
  front=/local/domain/1/device/vbd/$2
  dom0 xenstore-write "$back" "" "$front" ""
  dom0 xenstore-chmod "$back" n0 r1
  dom0 xenstore-chmod "$front" n1 r0
  dom0 xenstore-write "$back/frontend" "$front" "$back/frontend-id" 1 "$back/online" 1 "$back/removable" 0 \
    "$back/bootable" 1 "$back/dev" "xvd${letters:($2 - 51712) / 16:1}" "$back/type" "$type" "$back/mode" "${4:-w}" \
    "$back/device-type" disk "$back/discard-enable" 1 "$back/params" "$3" "$front/backend" "$back" \
    "$front/backend-id" 0 "$front/virtual-device" "$2" "$front/device-type" disk "$front/trusted" 1 \
    "$front/state" 1 "$back/state" 1
}

# detach: as `xl block-detach` does it. QEMU removes its nodes, and would remove what was written there meanwhile.
detach() {
  dom0 xenstore-write "$back/online" 0 "$back/state" 5
  eventually backend_is_gone
  dom0 xenstore-rm "$front"
}

# Of the disk that was attached last.
backend_is() { [ "$(dom0 xenstore-read "$back/state" 2>/dev/null)" = "$1" ]; }
frontend_is() { [ "$(dom0 xenstore-read "$front/state" 2>/dev/null)" = "$1" ]; }
backend_is_gone() { ! dom0 xenstore-read "$back/state" 2>/dev/null; }
