# SPDX-License-Identifier: Apache-2.0
"""What a person sees while the lab works: one line for each step, with the seconds since the beginning."""

import subprocess
import sys
import time

_begin = time.monotonic()


class LabError(Exception):
    """Something that a person can do something about; the message is one sentence."""


def say(text):
    print(f"[{time.monotonic() - _begin:5.0f} s] {text}", flush=True)


def run(command, log, what, **options):
    """Runs a command with its output in a log; a failure shows the end of it."""
    log.write(f"$ {' '.join(map(str, command))}\n")
    log.flush()
    begin = log.tell()
    status = subprocess.run(
        command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, **options).returncode
    if status != 0:
        with open(log.name, errors="replace") as text:
            text.seek(begin)
            tail = text.read().splitlines()[-15:]
        print("\n".join(tail), file=sys.stderr)
        raise LabError(f"{what} failed with status {status}; all of its output is in {log.name}")
