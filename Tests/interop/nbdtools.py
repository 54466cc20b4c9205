# SPDX-License-Identifier: Apache-2.0
"""What the Python programs of the interop scripts share: connecting, and naming the error a command must give."""

import contextlib
import errno
import os

import nbd

URI = os.environ.get("URI", "")


def connect(uri=None, strict=True, contexts=("base:allocation",)):
    """A connected handle; strict=False lets bad requests through to the server."""
    handle = nbd.NBD()
    for context in contexts:
        handle.add_meta_context(context)
    if not strict:
        handle.set_strict_mode(0)
    handle.connect_uri(uri or URI)
    return handle


@contextlib.contextmanager
def expect(name):
    """The block must fail with this errno, by name; several may be allowed: "EINVAL|ENOSPC"."""
    try:
        yield
    except nbd.Error as error:
        # libnbd gives a number for errors of the protocol and None for its own.
        got = errno.errorcode.get(error.errnum, str(error.errnum)) if error.errnum else str(error)
        assert got in name.split("|"), f"wanted {name}, got {got}: {error}"
    else:
        raise AssertionError(f"succeeded, wanted {name}")
