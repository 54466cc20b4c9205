# SPDX-License-Identifier: Apache-2.0
"""The consoles for a person: booted on a terminal, a command typed in dom0 and in the domU, and left again."""

import os
import pty
import re
import select
import signal
import time

RUN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "run")
# Until dom0 and its domU are up beside the machine that runs already.
BOOT_SECONDS = 400
DOM0, DOMU = r"root@dom0[^\n]*# ", r"root@domu[^\n]*# "
CONTROL_A, CONTROL_BRACKET = "\x01", "\x1d"


def run(lab):
    lab.check("--shell dom0: a command there, one in the domU's console, exit", driven, lab, "dom0", [
        (DOM0, "xl list; echo sum $((40+2))\r"), ("sum 42", ""),
        (DOM0, "xl console domu\r"), ("this is the domU", "\r"),
        (DOMU, "xbd-user list; echo sum $((50+5))\r"), (r"xvdb \(51728\)", ""), ("sum 55", CONTROL_BRACKET),
        (DOM0, "exit\r"),
    ])
    lab.check("--shell domu: a disk served there, Ctrl-a x", driven, lab, "domu", [
        (DOMU, "xbd-user serve xvdc --socket /run/s & sleep 4; nbdinfo --size 'nbd+unix:///?socket=/run/s'; kill %1; wait\r"),
        (r"268435456\r*\n", CONTROL_BRACKET), (DOM0, CONTROL_A + "x"),
    ])


def driven(lab, where, steps):
    child, line = pty.fork()
    if child == 0:
        os.environ["XBD_USER"] = lab.program
        os.environ["XBD_LAB_RESULTS"] = lab.machine.directory + "/shell"
        os.execv("/bin/bash", ["bash", RUN, "--shell", where])
    try:
        with open(f"{lab.machine.directory}/shell-{where}.log", "wb") as log:
            seen = b""
            for pattern, answer in steps:
                seen = until(line, pattern.encode(), seen, log)
                os.write(line, answer.encode())
            end = time.monotonic() + 60
            while os.waitpid(child, os.WNOHANG)[0] == 0:
                assert time.monotonic() < end, "the machine does not end"
                if select.select([line], [], [], 0.2)[0]:
                    read(line, log)
            child = None
    finally:
        if child:
            os.kill(child, signal.SIGTERM)
        os.close(line)
        if child:
            os.waitpid(child, 0)


def until(line, pattern, seen, log):
    """Reads until a pattern comes; returns what came after it."""
    end = time.monotonic() + BOOT_SECONDS
    while True:
        found = re.search(pattern, seen)
        if found:
            return seen[found.end():]
        left = end - time.monotonic()
        assert left > 0, f"the terminal does not show {pattern.decode()}; its last lines: {seen[-800:].decode(errors='replace')}"
        if select.select([line], [], [], min(left, 1))[0]:
            data = read(line, log)
            assert data is not None, f"it ended before it showed {pattern.decode()}: {seen[-800:].decode(errors='replace')}"
            seen += data


def read(line, log):
    try:
        data = os.read(line, 4096)
    except OSError:
        return None
    log.write(data)
    log.flush()
    return data or None
