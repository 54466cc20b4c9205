#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# timeout: 120
# A disk that QEMU makes larger and smaller while it is served: clients that were there before keep their idea of the
# size, may go beyond it and get errors behind a nearer end; those that come afterwards see the new one.
# backend: own; it is QEMU's monitor that resizes
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/loopback.sh"
requires /usr/libexec/xen-qemu-system-i386 xenstore-write xenstore-read nbdinfo python3-libnbd

start_host
truncate -s 16M "$dir/disk.img"
start_qemu -qmp "unix:$dir/qmp,server,nowait"
attach qdisk 51712 "raw:$dir/disk.img"
eventually backend_is 2
start_front 51712
expect "the size before" "$(nbdinfo --size "$uri")" $((16 << 20))

libnbd "$dir/qmp" "$dir/disk.img" <<'PY'
import json, os, socket, subprocess, sys, time

from nbdtools import URI, connect, expect

line = socket.socket(socket.AF_UNIX)
line.settimeout(30)
line.connect(sys.argv[1])
stream = line.makefile("rw")
M = 1 << 20


def ask(command, **arguments):
    stream.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
    stream.flush()
    while True:
        answer = json.loads(stream.readline())
        assert "error" not in answer, answer
        if "return" in answer:
            return answer["return"]


def resize(size):
    """Has QEMU resize the image, and waits until a new client is told."""
    for node in ask("query-named-block-nodes"):
        if node["file"] == sys.argv[2] and node["drv"] != "file":
            ask("block_resize", **{"node-name": node["node-name"], "size": size})
            break
    else:
        raise AssertionError("QEMU has no such disk")
    for _ in range(300):
        if int(subprocess.check_output(["nbdinfo", "--size", URI])) == size:
            return
        time.sleep(0.1)
    raise AssertionError(f"new clients are never told of {size} bytes")


stream.readline()
ask("qmp_capabilities")
before = connect(strict=False)
assert before.get_size() == 16 * M
before.pwrite(b"a" * 4096, 16 * M - 4096)
with expect("ENOSPC"):
    before.pwrite(b"b" * 4096, 16 * M)

# Larger: the old client's idea of the size stays, and the server's is the new one.
resize(24 * M)
assert before.get_size() == 16 * M
assert before.pread(4096, 16 * M - 4096) == b"a" * 4096
before.pwrite(b"b" * 4096, 16 * M)
after = connect(strict=False)
assert after.get_size() == 24 * M
assert after.pread(4096, 16 * M) == b"b" * 4096
after.pwrite(b"c" * 4096, 24 * M - 4096)
with expect("ENOSPC"):
    after.pwrite(b"c" * 4096, 24 * M)

# Smaller, below both: neither is told, both get errors behind the new end and nothing else changes.
resize(8 * M)
for handle in (before, after):
    with expect("EINVAL"):
        handle.pread(4096, 8 * M)
    with expect("ENOSPC"):
        handle.pwrite(b"d" * 4096, 12 * M)
    handle.pwrite(b"d" * 4096, 8 * M - 4096)
    assert handle.pread(4096, 8 * M - 4096) == b"d" * 4096
assert connect().get_size() == 8 * M
assert os.stat(sys.argv[2]).st_size == 8 * M

# And back, under a load that goes on through all of it.
for size in (16 * M, 9 * M, 32 * M):
    cookies = [before.aio_pwrite(bytes([n]) * 65536, n * 65536) for n in range(64)]
    resize(size)
    for cookie in cookies:
        while not before.aio_command_completed(cookie):
            before.poll(1000)
for n in range(64):
    assert before.pread(65536, n * 65536) == bytes([n]) * 65536
PY
expect "the size afterwards" "$(nbdinfo --size "$uri")" $((32 << 20))
stop
