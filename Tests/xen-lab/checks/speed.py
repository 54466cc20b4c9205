# SPDX-License-Identifier: Apache-2.0
"""The kernel's blkfront beside us, on the same backend: ratios, because an emulated machine has no figures of its own.

Each round measures both; what is reported is the median of the rounds' ratios, and CPU time as Xen counts it.
"""

import statistics

from lab.domu import Disk

from .matrix import to_kernel
from .serving import Server

LOADS = [("read", 4096, 1), ("write", 4096, 1), ("read", 4096, 32), ("write", 4096, 32), ("read", 131072, 8),
         ("write", 131072, 8)]
ROUNDS = 3
SECONDS = 1


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


def measure(lab, path, load):
    what, size, depth = load
    before = cpu(lab)
    rate, mebibytes = lab.domu.run(f"lab-load {path} {what} {size} {depth} {SECONDS}", 90).split()
    after = cpu(lab)
    gibibytes = max(float(mebibytes) / 1024, 1e-9)
    return float(rate), (after[0] - before[0]) / gibibytes, (after[1] - before[1]) / gibibytes


def compare(lab, kind, options):
    """Persistence is switched off for the kernel through its module's parameter, for us with the option."""
    feature = "N" if "--no-persistent" in options else "Y"
    samples = {load: {"ours": [], "kernel": []} for load in LOADS}
    disk = None
    try:
        for _ in range(ROUNDS):
            # A disk for each round: Linux's blkfront takes a device that it has let go of only when it is attached anew.
            disk = Disk(lab.dom0, lab.domu.id, kind, "xvdb")
            disk.create()
            disk.attach()
            with Server(lab, disk, "--queues 1 " + options) as server:
                for load in LOADS:
                    samples[load]["ours"].append(measure(lab, server.socket, load))
            lab.domu.run(f"set -e\n{to_kernel(disk, 'feature_persistent=' + feature)}", 90)
            for load in LOADS:
                samples[load]["kernel"].append(measure(lab, f"/dev/{disk.name}", load))
            lab.domu.run(f"echo vbd-{disk.number} >/sys/bus/xen/drivers/vbd/unbind; modprobe -r xen-blkfront", 60)
            disk.remove()
        rows = []
        for load in LOADS:
            pairs = list(zip(samples[load]["ours"], samples[load]["kernel"]))
            row = {
                "load": f"{load[0]} {load[1] // 1024} KiB, depth {load[2]}",
                "rate": round(statistics.median(ours[0] / kernel[0] for ours, kernel in pairs), 2),
                "domU CPU per GiB": round(statistics.median(ours[1] / max(kernel[1], 1e-9) for ours, kernel in pairs), 2),
                "dom0 CPU per GiB": round(statistics.median(ours[2] / max(kernel[2], 1e-9) for ours, kernel in pairs), 2),
            }
            rows.append(row)
        lab.report.figures[f"{kind} {options}".strip()] = {
            "ratios": rows, "samples": {f"{load}": samples[load] for load in LOADS}}
        return "; ".join(f"{row['load']}: {row['rate']}×" for row in rows)
    finally:
        lab.domu.ask("modprobe -r xen-blkfront", 60)
        disk.remove()
