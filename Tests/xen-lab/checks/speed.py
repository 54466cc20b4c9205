# SPDX-License-Identifier: Apache-2.0
"""The kernel's blkfront beside us, on the same backend: ratios, because an emulated machine has no figures of its own.

Each round measures every way once; what is reported is the median of the rounds' ratios to blkfront, and CPU time as Xen
counts it. The load is the same program for all: NBD requests on a socket, or AIO with O_DIRECT on a block device; and for
the library without a socket `xbd-user measure`, whose own count of the domU's CPU time leaves its start out.
"""

import json
import statistics

from lab.domu import Disk

from .matrix import to_kernel
from .serving import NBD_DOWN, NBD_UP, Server

LOADS = [("read", 4096, 1), ("write", 4096, 1), ("read", 4096, 32), ("write", 4096, 32), ("read", 131072, 8),
         ("write", 131072, 8)]
ROUNDS = 3
SECONDS = 1
KERNEL = "blkfront"


def run(lab):
    for kind, options in (("blkback", ""), ("blkback", "--no-persistent"), ("qdisk", "")):
        lab.check(f"{kind} {options}".strip() + ": speed beside the kernel's blkfront", compare, lab, kind, options)


def cpu(lab):
    """Seconds that the domU and dom0 have used so far."""
    used = {}
    for line in lab.dom0.run("xl list").splitlines()[1:]:
        parts = line.split()
        used[parts[0]] = float(parts[-1])
    return used["domu"], used["Domain-0"]


def measure(lab, command, load):
    """Requests a second, and the seconds that the domU and dom0 spent on a GiB."""
    what, size, depth = load
    before = cpu(lab)
    rate, mebibytes = lab.domu.run(f"{command} {what} {size} {depth} {SECONDS}", 120).split()
    after = cpu(lab)
    gibibytes = max(float(mebibytes) / 1024, 1e-9)
    return float(rate), (after[0] - before[0]) / gibibytes, (after[1] - before[1]) / gibibytes


def measure_library(lab, disk, options, load):
    what, size, depth = load
    pattern = what if size > 4096 else "rand" + what
    before = cpu(lab)
    said = json.loads(lab.domu.run(
        f"xbd-user measure {disk.name} --load {pattern} --overwrite --block {size} --depth {depth} --seconds {SECONDS} --json "
        f"--queues 1 {options}", 120))
    after = cpu(lab)
    gibibytes = max(said["requests"] * size / (1 << 30), 1e-9)
    return said["requestsPerSecond"], said["processorSecondsPerGibibyte"], (after[1] - before[1]) / gibibytes


def compare(lab, kind, options):
    samples = {}
    for _ in range(ROUNDS):
        for way, load, sample in one_round(lab, kind, options):
            samples.setdefault(way, {}).setdefault(load, []).append(sample)
    rows = []
    for way, loads in samples.items():
        if way == KERNEL:
            continue
        for load in LOADS:
            pairs = list(zip(loads[load], samples[KERNEL][load]))
            ratios = [[ours[index] / max(kernel[index], 1e-9) for ours, kernel in pairs] for index in range(3)]
            rows.append({
                "way": way, "load": f"{load[0]} {load[1] // 1024} KiB, depth {load[2]}",
                "rate": round(statistics.median(ratios[0]), 2),
                "rate, least and most": [round(min(ratios[0]), 2), round(max(ratios[0]), 2)],
                "domU CPU per GiB": round(statistics.median(ratios[1]), 2),
                "dom0 CPU per GiB": round(statistics.median(ratios[2]), 2),
            })
    lab.report.figures[f"{kind} {options}".strip()] = {
        "ratios": rows, "samples": {way: {f"{load}": got for load, got in loads.items()} for way, loads in samples.items()}}
    return "".join(f"\n           {row['way']}, {row['load']}: {row['rate']}× ({row['rate, least and most'][0]} to "
                   f"{row['rate, least and most'][1]}), CPU per GiB {row['domU CPU per GiB']}× and {row['dom0 CPU per GiB']}×"
                   for row in rows)


def one_round(lab, kind, options):
    """Persistence is switched off for the kernel through its module's parameter, for us with the option."""
    feature = "N" if "--no-persistent" in options else "Y"
    # A disk for each round: Linux's blkfront takes a device that it has let go of only when it is attached anew.
    disk = Disk(lab.dom0, lab.domu.id, kind, "xvdb")
    disk.create()
    disk.attach()
    try:
        # What was never written costs the image its blocks, once; nobody's share of the comparison.
        with Server(lab, disk, "--queues 1 " + options) as server:
            lab.domu.run(f"lab-load {server.socket} write 131072 8 3", 60)
            for load in LOADS:
                yield "NBD socket", load, measure(lab, f"lab-load {server.socket}", load)
            lab.domu.run(NBD_UP.format(socket=server.socket))
            try:
                for load in LOADS:
                    yield "nbd.ko", load, measure(lab, "lab-load /dev/nbd0", load)
            finally:
                lab.domu.run(NBD_DOWN)
        for load in LOADS:
            yield "library", load, measure_library(lab, disk, options, load)
        lab.domu.run(f"set -e\n{to_kernel(disk, 'feature_persistent=' + feature)}", 90)
        for load in LOADS:
            yield KERNEL, load, measure(lab, f"lab-load /dev/{disk.name}", load)
        lab.domu.run(f"echo vbd-{disk.number} >/sys/bus/xen/drivers/vbd/unbind; modprobe -r xen-blkfront", 60)
    finally:
        lab.domu.ask("modprobe -r xen-blkfront", 60)
        disk.remove()
