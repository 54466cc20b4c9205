# SPDX-License-Identifier: Apache-2.0
"""The seam's guarantees over libxen: the checks of Tests/XenConformance, which the loopback passes, on a real Xen.

`xen-party checks` runs on the host. Each of three domains has a `xen-party libxen` that carries orders out; the host's
orders go through the domains' agents.
"""

import os
import select
import socket
import subprocess
import sys
import time

from lab.domu import DomU
from lab.progress import LabError

SECONDS = 600
# Fewer, and xen-party ended early.
LEAST = 33


class Party:
    """A `xen-party libxen` in a domain; its input and output are pipes that a file name stands for."""

    def __init__(self, domain, number, program):
        self.domain = domain
        domain.run(f"""
rm -f /run/party.in /run/party.out
mkfifo /run/party.in /run/party.out
setsid bash -c 'exec {program} libxen {number} 0<>/run/party.in 1<>/run/party.out 2>/run/party.err' >/dev/null </dev/null &
echo $! >/run/party.pid""")

    def order(self, line):
        return self.domain.tell(line.strip())

    def end(self):
        self.domain.ask("kill $(cat /run/party.pid); rm -f /run/party.*")


def run(lab):
    if not lab.wanted("seam"):
        return
    stranger = DomU(lab.machine, "other")
    parties = {}
    try:
        stranger.create()
        node = f"/local/domain/{lab.domu.id}/data/conformance"
        lab.dom0.run(f"""
xenstore-write {node} ''
xenstore-chmod {node} n{lab.domu.id}
[ -x /usr/local/bin/xen-party ] || {{
  printf '#!/bin/sh\\nexec /lab/own/usr/lib64/ld-linux-x86-64.so.2 --library-path /lab/own/usr/lib/x86_64-linux-gnu:/lab/own/usr/lib /lab/own/usr/bin/xen-party "$@"\\n' >/usr/local/bin/xen-party
  chmod +x /usr/local/bin/xen-party
}}""")
        for domain, number in ((lab.domu, lab.domu.id), (lab.dom0, 0), (stranger, stranger.id)):
            parties[number] = Party(domain, number, "xen-party")
        count = 0
        for line in checks(lab, node, parties):
            verdict, _, text = line.partition(" ")
            lab.report.check("seam: " + (text if verdict == "ok" else text.partition(": ")[0]), judge, verdict, text)
            count += 1
        lab.report.check("seam: every check ran", all_ran, count)
    finally:
        for party in parties.values():
            party.end()
        stranger.destroy()


def judge(verdict, text):
    assert verdict == "ok", text


def all_ran(count):
    assert count >= LEAST, f"{count} checks said something, at least {LEAST} are there"
    return f"{count}"


def checks(lab, node, parties):
    """Runs the program and carries its orders to the domains; yields its lines."""
    place = lab.machine.directory + "/parties.sock"
    if os.path.exists(place):
        os.unlink(place)
    wrapper = lab.machine.directory + "/party"
    with open(wrapper, "w") as out:
        forward = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lab", "forward.py")
        out.write(f"#!/bin/sh\nexec {sys.executable} {forward} {place} \"$1\"\n")
    os.chmod(wrapper, 0o755)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(place)
    listener.listen(4)
    program = subprocess.Popen(
        [lab.party, "checks", node, wrapper, f"{lab.domu.id}", "0", f"{[n for n in parties if n not in (0, lab.domu.id)][0]}"],
        stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    streams = {}
    end = time.monotonic() + SECONDS
    try:
        while True:
            if time.monotonic() > end:
                raise LabError(f"the seam's checks take longer than {SECONDS} s")
            ready = select.select([listener, program.stdout, *streams], [], [], 1)[0]
            for one in ready:
                if one is listener:
                    streams[listener.accept()[0]] = [None, b""]
                elif one is program.stdout:
                    text = program.stdout.readline()
                    if not text:
                        program.wait(60)
                        return
                    yield text.strip()
                else:
                    data = one.recv(65536)
                    if not data:
                        del streams[one]
                        continue
                    streams[one][1] += data
                    carry(one, streams[one], parties)
    finally:
        program.kill()
        program.wait()
        listener.close()


def carry(line, stream, parties):
    """Carries out the whole lines that have come: the domain's number first, then its orders."""
    while b"\n" in stream[1]:
        text, stream[1] = stream[1].split(b"\n", 1)
        if stream[0] is None:
            stream[0] = parties[int(text)]
        else:
            line.sendall((stream[0].order(text.decode()) + "\n").encode())
