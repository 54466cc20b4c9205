# SPDX-License-Identifier: Apache-2.0
"""Clients of every kind on one disk. Each owns a stretch of it and keeps a model of every byte there.

usage: soak.py SECONDS IMAGE, with URI in the environment. IMAGE, unless empty, is compared with the models at the
end. XBD_SOAK_SEED repeats a run's choices; what the disk has to hold at the end goes to the file XBD_SOAK_MODEL.
"""

import os
import random
import sys
import threading
import time

import nbd
from nbdtools import CAN_FLUSH, CAN_TRIM, TRIM_FAILS, connect, flush

SECONDS = float(sys.argv[1])
# Backends that cannot flush or discard are not asked to; one that offers discards and fails has a test of its own.
KINDS = "wwwwrrrrzz" + "f" * CAN_FLUSH + "t" * (CAN_TRIM and not TRIM_FAILS)
SEED = int(os.environ.get("XBD_SOAK_SEED", random.randrange(1 << 32)))
WORKERS = 6
failures = []
operations = [0] * WORKERS
models = [None] * WORKERS


class Worker:
    """One connection, replaced now and then, with up to `depth` requests in flight."""

    def __init__(self, number, base, size):
        self.number, self.base, self.size = number, base, size
        self.random = random.Random(SEED + number)
        self.depth = [1, 2, 8, 16, 32, 32][number]
        self.unit = [1, 1, 512, 512, 4096, 4096][number]
        self.model = bytearray(size)
        self.pending = {}
        models[number] = self.model
        self.handle = connect(strict=False)

    def free_range(self):
        """A stretch that no request in flight touches, so that the model knows what is in it."""
        for _ in range(20):
            largest = self.random.choice([1, 16, 256, 2048]) * max(self.unit, 64)
            length = max(1, self.random.randrange(largest) // self.unit) * self.unit
            length = min(length, self.size)
            offset = self.random.randrange((self.size - length) // self.unit + 1) * self.unit
            if all(offset + length <= o or o + n <= offset for o, n, _ in self.pending.values()):
                return offset, length
        return None

    def submit(self):
        place = self.free_range()
        if place is None:
            return False
        offset, length = place
        at = self.base + offset
        kind = self.random.choice(KINDS)
        check = None
        if kind == "w":
            data = self.random.randbytes(length)
            flags = nbd.CMD_FLAG_FUA if CAN_FLUSH and self.random.randrange(50) == 0 else 0
            cookie = self.handle.aio_pwrite(data, at, flags=flags)
            self.model[offset:offset + length] = data
        elif kind == "z":
            flags = self.random.choice([0, nbd.CMD_FLAG_NO_HOLE])
            cookie = self.handle.aio_zero(length, at, flags=flags)
            self.model[offset:offset + length] = bytes(length)
        elif kind == "t":
            before = bytes(self.model[offset:offset + length])
            cookie = self.handle.aio_trim(length, at)

            def check():
                # Each byte is what it was or zero, and stays so.
                got = bytes(self.handle.pread(length, at))
                if any(g not in (0, b) for g, b in zip(got, before)):
                    raise AssertionError(f"worker {self.number}: something else after a trim at {at}+{length}")
                self.model[offset:offset + length] = got
        elif kind == "f":
            offset = length = 0
            cookie = self.handle.aio_flush()
        else:
            buffer = nbd.Buffer(length)
            cookie = self.handle.aio_pread(buffer, at)
            expected = bytes(self.model[offset:offset + length])

            def check():
                got = bytes(buffer.to_bytearray())
                if got != expected:
                    wrong = next(i for i in range(length) if got[i] != expected[i])
                    raise AssertionError(f"worker {self.number}: byte {at + wrong} of a read at {at}+{length}")

        self.pending[cookie] = (offset, length, check)
        return True

    def collect(self):
        self.handle.poll(1000)
        for cookie in list(self.pending):
            # Raises when the server answered with an error.
            if self.handle.aio_command_completed(cookie):
                # Its stretch stays taken until the check has read it.
                check = self.pending[cookie][2]
                operations[self.number] += 1
                if check:
                    check()
                del self.pending[cookie]

    def reconnect(self):
        while self.pending:
            self.collect()
        if self.random.randrange(2):
            self.handle.shutdown()
        self.handle = connect(strict=False)

    def run(self, deadline):
        self.handle.zero(self.size, self.base)
        while time.monotonic() < deadline and not failures:
            for _ in range(self.random.randrange(1, self.depth + 1)):
                if len(self.pending) >= self.depth or not self.submit():
                    break
            self.collect()
            if self.random.randrange(500) == 0:
                self.reconnect()
        while self.pending:
            self.collect()
        for start in range(0, self.size, 1 << 20):
            count = min(1 << 20, self.size - start)
            assert self.handle.pread(count, self.base + start) == self.model[start:start + count], (
                f"worker {self.number}: the stretch at {self.base + start} at the end")
        flush(self.handle)
        self.handle.shutdown()


def main():
    print(f"soak: {SECONDS:g} s, {WORKERS} clients, XBD_SOAK_SEED={SEED}", flush=True)
    disk = connect().get_size()
    borders = [disk // WORKERS // 4096 * 4096 * number for number in range(WORKERS + 1)]
    # The two that write single bytes meet inside a sector.
    borders[1] -= 77
    borders[WORKERS] = disk
    stretches = [(borders[n], borders[n + 1] - borders[n]) for n in range(WORKERS)]
    deadline = time.monotonic() + SECONDS
    threads = []
    for number in range(WORKERS):

        def body(number=number):
            try:
                Worker(number, *stretches[number]).run(deadline)
            except BaseException as error:  # noqa: B036 - reported by the main thread
                failures.append(f"{type(error).__name__}: {error}")

        threads.append(threading.Thread(target=body))
        threads[-1].start()
    for thread in threads:
        thread.join(SECONDS + 300)
        if thread.is_alive():
            failures.append("a client hangs: a request was never answered")
            break
    print(f"soak: {sum(operations)} requests, {operations}", flush=True)
    if failures:
        print(f"soak: XBD_SOAK_SEED={SEED}", *failures, sep="\n", flush=True)
        os._exit(1)
    if "XBD_SOAK_MODEL" in os.environ:
        with open(os.environ["XBD_SOAK_MODEL"], "wb") as file:
            for model in models:
                file.write(model)
    if not sys.argv[2]:
        return
    # Behind the server's back: the image holds what the models say.
    with open(sys.argv[2], "rb") as image:
        for number, model in enumerate(models):
            image.seek(stretches[number][0])
            if image.read(stretches[number][1]) != model:
                print(f"soak: the image differs from what client {number} wrote and flushed, XBD_SOAK_SEED={SEED}")
                os._exit(1)


main()
