# SPDX-License-Identifier: Apache-2.0
"""What the Python programs of the interop scripts share: connecting, and naming the error a command must give."""

import contextlib
import errno
import os
import signal
import time

import nbd

URI = os.environ.get("URI", "")
# The known backend that is served as (Tests/interop/run), and what it is known for (docs/backends.md).
PROFILE = os.environ.get("XBD_PROFILE", "")
CAN_FLUSH = PROFILE not in ("mirage", "minimal")
CAN_TRIM = PROFILE in ("", "linux-6.x", "linux-3.x", "qemu")
# linux-3.x offers discards and finds out that it cannot when it is asked.
TRIM_FAILS = PROFILE == "linux-3.x"


def connect(uri=None, strict=True, contexts=("base:allocation",)):
    """A connected handle; strict=False lets bad requests through to the server."""
    handle = nbd.NBD()
    for context in contexts:
        handle.add_meta_context(context)
    if not strict:
        handle.set_strict_mode(0)
    handle.connect_uri(uri or URI)
    return handle


def flush(handle):
    """A flush where the backend has one. Without one the server must say so, and what it has answered is in the image."""
    if CAN_FLUSH:
        handle.flush()
    else:
        assert not handle.can_flush(), "a flush is offered that nobody can do"


def trim(handle, length, offset, flags=0):
    """A trim where the backend has one."""
    if not CAN_TRIM:
        assert not handle.can_trim(), "a trim is offered that nobody can do"
        return
    try:
        handle.trim(length, offset, flags)
    except nbd.Error as error:
        # Those who connect once that is known are not offered it.
        assert TRIM_FAILS and error.errnum == (errno.ENOTSUP if handle.can_trim() else errno.EINVAL), error


def freeze(pid):
    """SIGSTOP, and back only when no thread of the process runs: it stops when one of them gets to the signal, and until
    then the others go on and answer."""
    os.kill(pid, signal.SIGSTOP)
    while any(state(f"{pid}/task/{task}") != "T" for task in os.listdir(f"/proc/{pid}/task")):
        time.sleep(0.01)


def state(process):
    """The state of a process, or of one thread ("PID/task/TID"), as its letter in /proc; None once it is gone."""
    try:
        with open(f"/proc/{process}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return None


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
