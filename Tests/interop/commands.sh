#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Every command and every error of the protocol that a client can provoke, through libnbd.
# profile: each; each command, by whatever the backend has and has not
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires python3-libnbd

serve memory:64M
libnbd <<'PY'
import nbd
from nbdtools import CAN_FLUSH, connect, expect, flush, trim

h = connect()
size = h.get_size()
assert size == 64 << 20
K = 4096

# Reading, writing, flushing.
pattern = bytes(i * 7 & 255 for i in range(K))
h.pwrite(pattern, 8 * K)
assert h.pread(K, 8 * K) == pattern
assert h.pread(3 * K, 7 * K) == bytes(K) + pattern + bytes(K)
flush(h)
# Where there is no flush there is no FUA.
assert h.can_fua() == CAN_FLUSH
FUA = nbd.CMD_FLAG_FUA if CAN_FLUSH else 0
h.pwrite(pattern, 9 * K, FUA)
assert h.pread(K, 9 * K) == pattern

# Zeroes and trims, with all their flags.
h.zero(K, 8 * K)
assert h.pread(K, 8 * K) == bytes(K)
h.pwrite(pattern, 8 * K)
h.zero(K, 8 * K, nbd.CMD_FLAG_NO_HOLE | FUA)
assert h.pread(K, 8 * K) == bytes(K)
trim(h, K, 9 * K)
trim(h, K, 9 * K, FUA)
if h.can_fast_zero():
    try:
        h.zero(K, 10 * K, nbd.CMD_FLAG_FAST_ZERO)
    except nbd.Error as error:
        assert error.errno == "ENOTSUP", error
if h.can_cache():
    h.cache(K, 0)

# Structured replies: whole, in pieces, and forbidden to be in pieces.
assert h.get_structured_replies_negotiated()
chunks = []
h.pread_structured(64 * K, 0, lambda data, offset, kind, error: chunks.append((offset, len(data))))
assert sum(length for _, length in chunks) == 64 * K
chunks = []
h.pread_structured(64 * K, 0, lambda data, offset, kind, error: chunks.append((offset, len(data))), nbd.CMD_FLAG_DF)
assert len(chunks) == 1 and chunks[0] == (0, 64 * K)

# Block status covers what was asked for.
extents = []
h.block_status(size, 0, lambda context, offset, entries, error: extents.extend(entries))
assert sum(extents[0::2]) >= K and all(flags in (0, 1, 2, 3) for flags in extents[1::2])
extents = []
h.block_status(1 << 20, 0, lambda context, offset, entries, error: extents.extend(entries), nbd.CMD_FLAG_REQ_ONE)
assert len(extents) == 2 and 0 < extents[0] <= 1 << 20
h.shutdown()

# What no client should send: an error each, and the connection goes on.
h = connect(strict=False)
with expect("EINVAL"):
    h.pread(K, size)
with expect("EINVAL"):
    h.pread(2 * K, size - K)
with expect("EINVAL"):
    h.pread(K, 1 << 63)
with expect("ENOSPC|EINVAL"):
    h.pwrite(pattern, size)
with expect("ENOSPC|EINVAL"):
    h.pwrite(pattern * 2, size - K)
with expect("ENOSPC|EINVAL"):
    h.pwrite(pattern, (1 << 64) - K)
with expect("EINVAL|ENOSPC"):
    h.trim(2 * K, size - K)
with expect("EINVAL|ENOSPC"):
    h.zero(2 * K, size - K)
with expect("EINVAL"):
    h.pread(K, 0, 1 << 14)
with expect("EINVAL"):
    h.pwrite(pattern, 0, 1 << 14)
assert h.pread(K, 9 * K) is not None
assert h.pread(K, size - K) == bytes(K)
h.shutdown()

# Length 0 is unspecified; here it is no error.
h = connect(strict=False)
trim(h, 0, 0)
h.zero(0, 0)
h.pwrite(b"", 0)
assert h.pread(0, 0) == b""
h.shutdown()

# A client without structured replies, and one without anything new.
h = nbd.NBD()
h.set_request_structured_replies(False)
import os
h.connect_uri(os.environ["URI"])
h.pwrite(pattern, 0)
assert h.pread(K, 0) == pattern
h.shutdown()
h = nbd.NBD()
h.set_handshake_flags(nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE)
h.set_request_structured_replies(False)
h.connect_uri(os.environ["URI"])
assert h.pread(K, 0) == pattern
h.shutdown()
PY
stop
