#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# serve --loopback IMAGE --backend …: each backend serves the same disk, and none is left when the server has ended,
# not even after a kill.
# backend: own; it compares them
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires nbdcopy /usr/libexec/xen-qemu-system-i386 qemu-img xenstore-ls fio

random_file "$dir/in" $((16 << 20))
children() { pgrep -P "$server"; }

for backend in reference process qemu; do
  serve "$dir/$backend.img" --size 16M --backend "$backend"
  nbdcopy --flush "$dir/in" "$uri"
  nbdcopy "$uri" - | cmp - "$dir/in"
  cmp "$dir/$backend.img" "$dir/in"
  (cd "$dir" && timeout 120 fio --name=verify --ioengine=nbd --uri="$uri" --rw=randwrite --bsrange=4k-128k --serialize_overlap=1 --iodepth=16 \
    --size=8M --verify=crc32c --do_verify=1 --minimal >fio.out 2>&1) || fail "fio over $backend: $(cat "$dir/fio.out")"
  stop
done

# What cannot be is said in one sentence.
refused "--grant-copy" "$XBD_USER" serve --loopback "$dir/qemu.img" --backend qemu --grant-copy
refused "image files" "$XBD_USER" serve --loopback memory:1M --backend qemu
refused "$dir/absent.img" "$XBD_USER" serve --loopback "$dir/absent.img" --backend qemu

# A backend does not outlive a server that was killed.
for backend in process qemu; do
  serve "$dir/$backend.img" --backend "$backend"
  child=$(children)
  kill_hard "$server"
  gone() { ! alive "$child"; }
  eventually gone
done

# The user's own: wait for it, then serve.
start server "$XBD_USER" serve --loopback "$dir/qemu.img" --backend none --socket "$dir/own"
server=$pid
eventually grep -q XBD_LOOPBACK= "$dir/server.err"
xen=$(sed -nE 's/^ *XBD_LOOPBACK=(.*)/\1/p' "$dir/server.err")
contains "the tree" "$("$XBD_USER" loopback exec "$xen" -- xenstore-ls -f)" "params = \"raw:$dir/qemu.img\""
start qemu "$XBD_USER" loopback exec "$xen" -- /usr/libexec/xen-qemu-system-i386 -M xenpv -xen-attach -xen-domid 1 \
  -nographic -nodefaults -no-user-config -monitor none -serial none -parallel none
qemu=$pid
pid=$server
await_uri server
nbdcopy "$uri" - >/dev/null
stop
kill -TERM "$qemu"
reap "$qemu"

# A program's status is passed on, and a host of its own is gone with it.
status=0
"$XBD_USER" loopback exec -- sh -c 'xenstore-ls >/dev/null && exit 7' || status=$?
expect "status of exec" "$status" 7
contains "shell" "$(echo 'xenstore-read /local/domain/1/name' | SHELL=/bin/sh "$XBD_USER" loopback shell)" domain-1
refused "no loopback host" "$XBD_USER" loopback exec "$dir/nowhere" -- true
refused "XBD_LOOPBACK" env XBD_LOOPBACK="$dir/nowhere" "$XBD_USER" serve xvda
