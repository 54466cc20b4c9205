#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""An NBD client on libnbd that knows what every byte has to be: what the checks run in the domU.

    client.py SOCKET sizes                     size, flags and limits as JSON
    client.py SOCKET verify [OPTION...]        random writes and reads of many sizes against a copy in memory
    client.py SOCKET load                      keeps requests in flight until it fails or the time is over
    client.py SOCKET commands                  flush, FUA, discard and write-zeroes, each with what it leaves
    client.py SOCKET edges                     past the end, across the end, nothing at all
    client.py SOCKET fill, check               the whole disk with a pattern that the seed decides
    client.py SOCKET readonly                  writes are refused, reads are not
    client.py SOCKET cycles DEVICE [OPTION...] `xbd-user serve` started, used and ended, again and again
"""

import argparse
import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time

import nbd

BLOCK = 512


def fail(text):
    print(text)
    sys.exit(1)


def connect(path):
    handle = nbd.NBD()
    handle.connect_unix(path)
    return handle


def pattern(seed, block, count=1):
    """The bytes of blocks of 64 KiB that a seed decides."""
    return b"".join(hashlib.shake_128(f"{seed}:{block + index}".encode()).digest(65536) for index in range(count))


def sizes(handle, _):
    print(json.dumps({
        "size": handle.get_size(), "readonly": handle.is_read_only(), "flush": handle.can_flush(), "fua": handle.can_fua(),
        "trim": handle.can_trim(), "zero": handle.can_zero(), "multi": handle.can_multi_conn(),
        "minimum": handle.get_block_size(nbd.SIZE_MINIMUM), "maximum": handle.get_block_size(nbd.SIZE_MAXIMUM),
    }))


def fill(handle, options):
    size = handle.get_size()
    for block in range(size // 65536):
        handle.pwrite(pattern(options.seed, block), block * 65536)
    handle.flush()


def check(handle, options):
    size = handle.get_size()
    for block in range(size // 65536):
        if handle.pread(65536, block * 65536) != pattern(options.seed, block):
            fail(f"the 64 KiB at {block * 65536} are not what was written")


def verify(handle, options):
    """Keeps up to 16 requests in flight that do not overlap; their lengths are from 512 bytes to 1 MiB."""
    rng = random.Random(options.seed)
    size = min(handle.get_size(), options.span)
    model = bytearray(handle.pread(size, 0) if size <= 1 << 20 else
                      b"".join(bytes(handle.pread(1 << 20, at)) for at in range(0, size, 1 << 20)))
    lengths = [512, 1024, 4096, 4096, 8192, 44 << 10, 45056 + 512, 64 << 10, 128 << 10, 256 << 10, 1 << 20]
    noise = rng.randbytes(2 << 20)
    done = direct = 0
    while done < options.requests:
        flights, taken = [], []
        while len(flights) < 16:
            length = rng.choice(lengths)
            if length > size // 4:
                continue
            offset = rng.randrange(0, (size - length) // BLOCK + 1) * BLOCK
            if any(offset < end and begin < offset + length for begin, end in taken):
                break
            taken.append((offset, offset + length))
            direct += length <= 44 << 10
            if rng.random() < 0.5:
                at = rng.randrange(0, len(noise) - length)
                data = noise[at : at + length]
                model[offset : offset + length] = data
                flights.append((handle.aio_pwrite(data, offset), None, offset, length))
            else:
                buffer = nbd.Buffer(length)
                flights.append((handle.aio_pread(buffer, offset), buffer, offset, length))
        for cookie, buffer, offset, length in flights:
            while not handle.aio_command_completed(cookie):
                if handle.poll(60000) == 0:
                    fail(f"no answer for 60 s to {length} bytes at {offset}")
            if buffer is not None and buffer.to_bytearray() != model[offset : offset + length]:
                fail(f"{length} bytes at {offset} are not what was written (request {done} of seed {options.seed})")
            done += 1
    handle.flush()
    for at in range(0, size, 1 << 20):
        length = min(1 << 20, size - at)
        if bytes(handle.pread(length, at)) != bytes(model[at : at + length]):
            fail(f"the MiB at {at} is not what was written")
    print(f"{done} requests, {direct} of them direct, {done - direct} indirect where the backend has it")


def load(handle, options):
    """Writes and reads back its own blocks; says how many it did, and how it ended."""
    end = time.monotonic() + options.seconds
    rng = random.Random(options.seed)
    count = 0
    blocks = handle.get_size() // 65536
    written = {}
    try:
        while time.monotonic() < end:
            block = rng.randrange(0, blocks)
            generation = rng.randrange(1 << 30)
            handle.pwrite(pattern(generation, block), block * 65536)
            written[block] = generation
            block = rng.choice(list(written))
            if handle.pread(65536, block * 65536) != pattern(written[block], block):
                fail(f"after {count} requests the 64 KiB at {block * 65536} are not what was written")
            count += 2
            if count == 2:
                print("begun", flush=True)
    except nbd.Error as error:
        print(f"{count} requests, then: {error}")
        sys.exit(3)
    for block, generation in written.items():
        if handle.pread(65536, block * 65536) != pattern(generation, block):
            fail(f"at the end the 64 KiB at {block * 65536} are not what was written")
    print(f"{count} requests")


def commands(handle, _):
    one, zero = pattern(1, 0), bytes(65536)
    handle.pwrite(one, 0)
    handle.flush()
    handle.pwrite(one, 65536, nbd.CMD_FLAG_FUA)
    if handle.pread(65536, 65536) != one:
        fail("a write with FUA is not there")
    done = ["flush", "FUA"]
    if handle.can_zero():
        handle.zero(65536, 65536)
        if handle.pread(65536, 65536) != zero:
            fail("write-zeroes left something")
        handle.pwrite(one, 65536)
        handle.zero(4096, 65536 + 4096, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
        if handle.pread(65536, 65536) != one[:4096] + bytes(4096) + one[8192:]:
            fail("write-zeroes of the second page did not write just that")
        done.append("write-zeroes")
    if handle.can_trim():
        handle.trim(65536, 0)
        if handle.pread(65536, 65536)[:4096] != one[:4096]:
            fail("discard went further than it was asked")
        handle.pread(65536, 0)
        done.append("discard")
    print(", ".join(done))


def edges(handle, _):
    size = handle.get_size()
    handle.set_strict_mode(0)
    for offset, length in ((size, 512), (size - 512, 1024), (1 << 50, 4096), (size + 4096, 4096)):
        try:
            handle.pread(length, offset)
            fail(f"reading {length} bytes at {offset} of {size} succeeded")
        except nbd.Error as error:
            if error.errnum not in (errno.EINVAL, errno.ENOSPC, errno.EIO):
                fail(f"reading past the end gave {error}")
        try:
            handle.pwrite(bytes(length), offset)
            fail(f"writing {length} bytes at {offset} of {size} succeeded")
        except nbd.Error as error:
            if error.errnum not in (errno.EINVAL, errno.ENOSPC, errno.EIO):
                fail(f"writing past the end gave {error}")
    handle.pread(512, size - 512)
    handle.pwrite(bytes(512), size - 512)


def readonly(handle, _):
    if not handle.is_read_only():
        fail("the export does not say that it is read-only")
    handle.set_strict_mode(0)
    handle.pread(65536, 0)
    try:
        handle.pwrite(bytes(512), 0)
        fail("a write to a read-only disk succeeded")
    except nbd.Error as error:
        if error.errnum not in (errno.EPERM, errno.EROFS):
            fail(f"a write to a read-only disk gave {error}")


def cycles(path, options):
    """Each cycle reads what the one before wrote, so that nothing is lost between them."""
    before = None
    for cycle in range(options.count):
        server = subprocess.Popen(
            ["xbd-user", "serve", options.device, "--socket", path, *options.serve], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE)
        # The URI is the sign that the socket is there.
        line = server.stdout.readline()
        if not line:
            fail(f"cycle {cycle}: {server.communicate(timeout=60)[1].decode().strip()}")
        handle = connect(path)
        if before is not None and handle.pread(131072, 65536 * (cycle % 8)) != before:
            fail(f"cycle {cycle}: what the cycle before wrote is not there")
        before = pattern(cycle, 0, 2)
        handle.pwrite(before, 65536 * ((cycle + 1) % 8))
        if cycle % 4 == 0:
            handle.flush()
        if cycle % 4 == 1:
            del handle  # a client that just goes
        else:
            handle.shutdown()
        server.send_signal(signal.SIGTERM)
        errors = server.communicate(timeout=60)[1]
        if server.returncode != 0:
            fail(f"cycle {cycle}: status {server.returncode}: {errors.decode().strip()}")
        if os.path.exists(path):
            fail(f"cycle {cycle}: the socket was left behind")
    print(f"{options.count} cycles")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("socket")
    parser.add_argument("what", choices=["sizes", "verify", "load", "commands", "edges", "fill", "check", "readonly", "cycles"])
    parser.add_argument("device", nargs="?")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--span", type=int, default=16 << 20)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--serve", action="append", default=[], help="an option for xbd-user serve, as --serve=--queues=2")
    options = parser.parse_args()
    if options.what == "cycles":
        cycles(options.socket, options)
        return
    handle = connect(options.socket)
    globals()[options.what](handle, options)
    try:
        handle.shutdown()
    except nbd.Error:
        pass


main()
