# SPDX-License-Identifier: Apache-2.0
"""Writes and reads at random for as long as a file exists, each byte against a model; a second client looks on."""

import os
import random
import sys

import nbd
import nbdtools
from nbdtools import CAN_FLUSH, flush

size, flag = int(sys.argv[1]), sys.argv[2]
random.seed(7)
writer, reader = nbdtools.connect(strict=False), nbdtools.connect(strict=False)
model = bytearray(size)
writer.zero(size, 0)
rounds = 0
while os.path.exists(flag):
    # Many at once, none of which overlap.
    cookies, ranges = [], []
    places = random.sample(range(size // 65536), 24)
    for place in places:
        length = random.choice([512, 4096, 12288, 65536, 700])
        offset = place * 65536 + random.choice([0, 0, 0, 123]) % (65537 - length)
        data = random.randbytes(length)
        buffer = nbd.Buffer.from_bytearray(bytearray(data))
        flags = random.choice([0, 0, nbd.CMD_FLAG_FUA if CAN_FLUSH else 0])
        cookies.append(writer.aio_pwrite(buffer, offset, flags=flags))
        model[offset : offset + length] = data
        ranges.append((offset, length))
    for cookie in cookies:
        while not writer.aio_command_completed(cookie):
            writer.poll(-1)
    if random.randrange(4) == 0:
        flush(writer)
    for offset, length in random.sample(ranges, 6):
        assert reader.pread(length, offset) == model[offset : offset + length], f"differs at {offset}"
    rounds += 1
for offset in range(0, size, 1 << 20):
    assert reader.pread(1 << 20, offset) == model[offset : offset + (1 << 20)], f"differs near {offset}"
flush(writer)
with open(flag + ".model", "wb") as file:
    file.write(model)
print(rounds, "rounds")
