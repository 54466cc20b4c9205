# SPDX-License-Identifier: Apache-2.0
"""What is measured, with which client, and what the project wants to reach."""

import json
import os
import subprocess
import time

GIB = 1 << 30


class Workload:
    """A run of one client. `goal` is what our value divided by the best peer's must be at least."""

    def __init__(self, name, unit, goal, cpu_goal=None):
        self.name, self.unit, self.goal, self.cpu_goal = name, unit, goal, cpu_goal


class Fio(Workload):
    def __init__(self, name, rw, block, depth, connections, goal, cpu_goal=None):
        super().__init__(name, "IOPS" if block < 65536 else "MB/s", goal, cpu_goal)
        self.rw, self.block, self.depth, self.connections = rw, block, depth, connections

    def run(self, server, seconds, _):
        argv = [
            "fio", "--name=bench", "--ioengine=nbd", f"--uri={server.uri}", f"--rw={self.rw}", f"--bs={self.block}",
            f"--iodepth={self.depth}", f"--numjobs={self.connections}", f"--runtime={seconds}", "--time_based",
            "--randrepeat=0", "--norandommap", "--group_reporting", "--output-format=json",
        ]
        if self.connections > 1 and not self.rw.startswith("rand"):
            argv.append(f"--offset_increment={100 // self.connections}%")
        result = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + 120, cwd=server.directory)
        if result.returncode != 0:
            raise RuntimeError(f"fio on {server.name}: {result.stderr[-500:]}")
        # Warnings may come before the JSON.
        report = json.loads(result.stdout[result.stdout.index("{"):])
        side = report["jobs"][0]["read" if "read" in self.rw else "write"]
        percentiles = side["clat_ns"].get("percentile", {})
        return {
            "value": side["iops"] if self.unit == "IOPS" else side["bw_bytes"] / 1e6,
            "bytes": side["io_bytes"],
            "p50_us": percentiles.get("50.000000", 0) / 1000,
            "p99_us": percentiles.get("99.000000", 0) / 1000,
        }


class Copy(Workload):
    def __init__(self, name, outward):
        super().__init__(name, "MB/s", 1.0)
        self.outward = outward

    def run(self, server, _, source):
        size = os.path.getsize(source)
        argv = ["nbdcopy", server.uri, "null:"] if self.outward else ["nbdcopy", source, server.uri]
        begin = time.monotonic()
        result = subprocess.run(argv, capture_output=True, text=True, timeout=600)
        taken = time.monotonic() - begin
        if result.returncode != 0:
            raise RuntimeError(f"nbdcopy on {server.name}: {result.stderr[-500:]}")
        return {"value": size / taken / 1e6, "bytes": size}


def all_workloads():
    small = 4096
    list = []
    for rw in ("randread", "randwrite"):
        side = "read" if rw == "randread" else "write"
        list += [
            Fio(f"4k-{side}-d1-c1", rw, small, 1, 1, 1.0),
            Fio(f"4k-{side}-d1-c2", rw, small, 1, 2, 1.0),
            Fio(f"4k-{side}-d32-c1", rw, small, 32, 1, 1.3, 0.5),
            Fio(f"4k-{side}-d32-c2", rw, small, 32, 2, 2.0, 0.5),
        ]
    for side in ("read", "write"):
        list += [
            Fio(f"128k-{side}-d8", side, 128 << 10, 8, 1, 1.0),
            Fio(f"1m-{side}-d8", side, 1 << 20, 8, 1, 1.0),
        ]
    list += [Copy("nbdcopy-read", True), Copy("nbdcopy-write", False)]
    return list
