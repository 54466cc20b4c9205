# SPDX-License-Identifier: Apache-2.0
"""What CI runs: both backends, what they publish, every byte, a filesystem, twenty life cycles."""

import json

from lab.domu import Disk

from .serving import Server, filesystem

# What only the backend itself may read, or what changes while one looks.
CHANGING = {"state"}


def run(lab, cycles=20):
    for kind, name in (("blkback", "xvdb"), ("qdisk", "xvdc")):
        disk = Disk(lab.dom0, lab.domu.id, kind, name)
        disk.create()
        lab.check(f"{kind}: the disk appears", disk.attach)
        lab.check(f"{kind}: list", listed, lab, disk)
        # blkback publishes most of its nodes when a frontend connects: look before and after.
        lab.check(f"{kind}: probe before the first connection", probed, lab, disk)
        for copy in ("direct", "bounce"):
            lab.check(f"{kind}: every byte, --copy {copy}", integrity, lab, disk, f"--copy {copy}")
        lab.check(f"{kind}: probe afterwards", probed, lab, disk)
        lab.check(f"{kind}: flush, FUA, write-zeroes, discard, past the end", commands, lab, disk)
        lab.check(f"{kind}: ext4 through the kernel's nbd", on_ext4, lab, disk)
        lab.check(f"{kind}: {cycles} life cycles", life, lab, disk, cycles)
        lab.check(f"{kind}: the disk goes", gone, lab, disk)


def listed(lab, disk):
    rows = json.loads(lab.domu.run("xbd-user list --json"))
    row = next((row for row in rows if row["number"] == disk.number), None)
    assert row, f"list does not show {disk.number}: {rows}"
    assert row["backend"] == disk.backend, f"list says that the backend is {row['backend']}, it is {disk.backend}"
    assert row.get("driver") is None, f"nobody drives the device, and list says {row}"
    assert row["backendDomain"] == 0


def probed(lab, disk):
    """What probe says is what the backend's directory has, key by key."""
    said = json.loads(lab.domu.run(f"xbd-user probe {disk.name} --json"))
    told = {node["key"]: node["value"] for node in said["backendNodes"]}
    text = lab.dom0.run(f"cd /; for key in $(xenstore-list {disk.backend}); do "
                        f"echo \"$key=$(xenstore-read {disk.backend}/$key)\"; done", 90)
    published = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    assert told == published, "probe differs from xenstore: " + "; ".join(
        f"{key}: {told.get(key)} / {published.get(key)}"
        for key in sorted(told.keys() | published.keys()) if told.get(key) != published.get(key))
    unknown = [node["key"] for node in said["backendNodes"] if not node.get("meaning")]
    assert not unknown, f"probe does not know what these mean: {', '.join(unknown)}"
    if "sectors" in published:
        assert said["sectors"] == int(published["sectors"]), f"{said['sectors']} sectors, {published['sectors']} published"
        assert int(published["sectors"]) * 512 == disk.size
    return f"{len(told)} nodes"


def integrity(lab, disk, options):
    with Server(lab, disk, options) as server:
        return server.client("verify --requests 200 --span 8388608")


def commands(lab, disk):
    with Server(lab, disk) as server:
        server.client("edges")
        return server.client("commands")


def on_ext4(lab, disk):
    with Server(lab, disk) as server:
        filesystem(lab, server)


def life(lab, disk, count):
    return lab.domu.run(f"lab-client /run/life.sock cycles {disk.name} --count {count}", 60 + count * 6)


def gone(lab, disk):
    disk.remove()
    left = lab.domu.ask(f"xenstore-exists device/vbd/{disk.number}")
    assert not left, f"device/vbd/{disk.number} is still there"
