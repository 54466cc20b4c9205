# SPDX-License-Identifier: Apache-2.0
"""The lab's order of work: images, machine, domU, checks, report. Started by ../run."""

import argparse
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time

from checks import full, minimal

from . import domu, images
from .machine import Machine
from .progress import LabError, say
from .report import Report


def arguments():
    parser = argparse.ArgumentParser(prog="Tests/xen-lab/run", description=__doc__)
    parser.add_argument("--full", action="store_true", help="everything, not only what CI runs")
    parser.add_argument("--shell", choices=["dom0", "domu"], help="a console for a person instead of checks")
    parser.add_argument("--only", default="", help="checks whose name contains this")
    parser.add_argument("--parts", default="", help="with --full, only these: " + ", ".join(full.PARTS))
    parser.add_argument("--program", required=True, help="the xbd-user to try")
    parser.add_argument("--results", required=True, help="a directory for logs and results.json")
    parser.add_argument("--timeout", type=int, default=0, help="seconds that everything may take")
    return parser.parse_args()


def main():
    options = arguments()
    limit = options.timeout or (5400 if options.full else 900)

    def overtime(*_):
        # Without the machine whatever still asks it something fails at once.
        if machine:
            machine.stop()
        raise LabError(f"the lab took longer than {limit} s and was stopped")

    def interrupted(*_):
        if machine:
            machine.stop()
        sys.exit(130)

    machine = None
    if not options.shell:
        signal.signal(signal.SIGALRM, overtime)
        signal.alarm(limit)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, interrupted)
    os.makedirs(options.results, exist_ok=True)
    lock = open(options.results + "/lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        print(f"another run of the lab uses {options.results}; name another directory with XBD_LAB_RESULTS\nFAIL")
        return 1
    report = Report(options.results)
    problem = None
    try:
        built = images.ensure()
        party = full_needs(options)
        machine = Machine(built, options.results, vcpus=1, memory=2500 if options.full else 1900)
        domu.pack(built, machine.share, options.program, party)
        if options.shell:
            return person(machine, options.shell)
        machine.start()
        report.facts = facts(machine)
        lab = Lab(machine, report, options)
        lab.domu.create()
        (full if options.full else minimal).run(lab)
        lab.domu.destroy()
    except (LabError, AssertionError, TimeoutError) as error:
        problem = f"the lab could not go on: {error}"
    except KeyboardInterrupt:
        problem = "interrupted"
    finally:
        signal.alarm(0)
        if machine:
            machine.stop()
            # What the machine was started from is large, and made again from the cache.
            shutil.rmtree(machine.share, ignore_errors=True)
    report.write()
    return report.finish(problem)


def full_needs(options):
    """The xen-party beside the program, which the full run has to have."""
    party = os.path.join(os.path.dirname(options.program), "xen-party")
    if not options.full:
        return None
    if not os.path.exists(party):
        raise LabError(f"{party} is not there: 'swift build -c release --product xen-party' first; 'make xen-lab FULL=1' does it")
    return party


class Lab:
    """What checks are given."""

    def __init__(self, machine, report, options):
        self.machine = machine
        self.report = report
        self.dom0 = machine.dom0
        self.domu = domu.DomU(machine)
        self.program = options.program
        self.party = full_needs(options)
        self.only = options.only
        self.parts = [part for part in options.parts.split(",") if part]

    def wanted(self, name):
        return self.only in name

    def check(self, name, body, *arguments):
        if self.wanted(name):
            self.report.check(name, body, *arguments)


def facts(machine):
    """What the results hold for, as Xen and the kernel themselves tell it."""
    found = {"when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    found["kernel"] = machine.dom0.run("uname -r")
    for line in machine.dom0.run("xl info").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("xen_version", "nr_cpus", "xen_commandline"):
            found[key.strip()] = value.strip()
    return found


def person(machine, where):
    """Hands the terminal to QEMU."""
    say("machine: the console is dom0's; Ctrl-a x ends the machine at once")
    command = machine.command(True, where)
    status = subprocess.call(command)
    shutil.rmtree(machine.share, ignore_errors=True)
    return status


sys.exit(main())
