#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# timeout: 300
# backend: own; profiles are of the reference backend, in this process and in another
# Every profile of the reference backend: data go in and come out again, whichever of its features a backend has.
# In one process (the backend on the frontend's thread) and in two (with events).
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires nbdcopy nbdinfo fio python3-libnbd

case ${XBD_PROFILES:-all} in
  all | default) profiles=$known_profiles ;;
  *) profiles=$XBD_PROFILES ;;
esac
random_file "$dir/in" $((4 << 20))

for profile in $profiles; do
  for backend in reference process; do
    what="$profile, $backend"
    serve "$dir/$profile-$backend.img" --size 16M --profile "$profile" --backend "$backend"
    nbdcopy "$dir/in" "$uri" || fail "$what: nbdcopy in"
    nbdcopy "$uri" "$dir/out" || fail "$what: nbdcopy out"
    cmp -n $((4 << 20)) "$dir/out" "$dir/in" || fail "$what: other bytes came back"
    (cd "$dir" && timeout 120 fio --name=verify --ioengine=nbd --uri="$uri" --rw=randwrite --bsrange=4k-128k --serialize_overlap=1 \
      --iodepth=16 --offset=4M --size=8M --verify=crc32c --do_verify=1 --minimal >fio.out 2>&1) ||
      fail "$what: fio: $(cat "$dir/fio.out")"
    case $profile in
      mirage | minimal) flush=False ;;
      *) flush=True ;;
    esac
    case $profile in
      linux-6.x | linux-3.x | qemu) trim=True ;;
      *) trim=False ;;
    esac
    libnbd "$flush" "$trim" "$profile" <<'PYTHON' || fail "$what: flush, trim, zero"
import errno
import sys

from nbdtools import connect, nbd

h = connect()
assert str(h.can_flush()) == sys.argv[1], "flush"
assert str(h.can_trim()) == sys.argv[2], "trim"
place = 12 << 20
h.pwrite(b"x" * 65536, place)
if h.can_flush():
    h.flush()
if h.can_fua():
    h.pwrite(b"y" * 512, place + 512, nbd.CMD_FLAG_FUA)
    assert h.pread(512, place + 512) == b"y" * 512
h.zero(8192, place + 8192)
assert h.pread(8192, place + 8192) == bytes(8192)
assert h.pread(512, place + 16384) == b"x" * 512
if h.can_trim():
    # A backend may find out only now that it cannot.
    try:
        h.trim(32768, place)
    except nbd.Error as error:
        assert error.errnum == errno.ENOTSUP and sys.argv[3] == "linux-3.x", error
    assert h.pread(512, place + 32768) == b"x" * 512
PYTHON
    stop
  done
done

# Faults on purpose reach the client as what they are, and nothing else changes.
serve memory:16M --fault error:write@1 --fault notsupported:flush@1+
libnbd <<'PYTHON' || fail "faults"
from nbdtools import connect, expect

h = connect()
with expect("EIO"):
    h.pwrite(b"x" * 4096, 0)
assert h.pread(4096, 0) == bytes(4096)
h.pwrite(b"y" * 4096, 0)
assert h.pread(4096, 0) == b"y" * 4096
PYTHON
stop
serve memory:16M --fault delay=2:read@1/4 --fault late@1/3
contains "the seed" "$(cat "$dir/server$servers.err")" "the faults' seed is"
(cd "$dir" && timeout 120 fio --name=verify --ioengine=nbd --uri="$uri" --rw=randwrite --bsrange=4k-128k --serialize_overlap=1 --iodepth=32 \
  --size=8M --verify=crc32c --do_verify=1 --minimal >fio.out 2>&1) || fail "fio: $(cat "$dir/fio.out")"
stop
start dying "$XBD_USER" serve --loopback memory:16M --fault die:write@1 --socket "$dir/dying"
pid=${started[-1]}
await_uri dying
libnbd <<'PYTHON' || true
from nbdtools import connect

connect().pwrite(b"x" * 4096, 0)
PYTHON
reap "$pid"
expect "the status of a process that dies" "$status" 137

# What makes no sense is said in one sentence.
refused "no fault" "$XBD_USER" serve --loopback memory:1M --fault sometimes
refused "512 bytes only" "$XBD_USER" serve --loopback memory:1M --profile netbsd --sector-size 4096

# An option that would have no effect is refused.
image=$dir/linux-6.x-reference.img
what="is for the reference backend"
refused "$what" "$XBD_USER" serve --loopback "$image" --backend none --profile netbsd
refused "$what" "$XBD_USER" serve --loopback "$image" --backend qemu --fault error@1
refused "$what" "$XBD_USER" serve xvda --loopback "$dir" --no-flush
