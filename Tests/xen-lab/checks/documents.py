# SPDX-License-Identifier: Apache-2.0
"""What docs/xen.md shows, taken from it word by word and tried in the domU, as far as a domU without systemd can."""

import os
import re

from lab.domu import Disk

from .serving import NBD_DOWN, Server

DOCUMENT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "..", "docs", "xen.md")


def run(lab):
    lab.check("docs: udev's names are the devices'", names, lab)
    lab.check("docs: the line of /etc/nbdtab makes a block device", table, lab)


def shown(pattern):
    with open(DOCUMENT) as text:
        found = re.search(pattern, text.read(), re.M)
    assert found, f"docs/xen.md has nothing like {pattern}"
    return found


def names(lab):
    devices = shown(r'^KERNEL=="([^"]+)", GROUP="\w+", MODE="0660"$')[1].split("|")
    for name in devices:
        # sysfs writes a slash of a kernel's name as an exclamation mark.
        lab.domu.run(f"test -d '/sys/class/misc/{name.replace('/', '!')}' && test -c /dev/{name}")
    return ", ".join(devices)


def table(lab):
    line = shown(r"^(nbd\d+) (/run/xbd-user/(\w+)\.sock) (\S+) .*$")
    device, socket, name, export = line.groups()
    disk = Disk(lab.dom0, lab.domu.id, "blkback", name)
    disk.create()
    disk.attach()
    try:
        lab.domu.run(f"mkdir -p {os.path.dirname(socket)}; printf '%s\\n' '{line[0]}' >/etc/nbdtab")
        with Server(lab, disk, "--export " + export) as server:
            lab.domu.run(f"""
ln -sfn {server.socket} {socket}
trap '{NBD_DOWN} || true' EXIT
nbd-client {device} 2>&1 || exit 1
size=$(blockdev --getsize64 /dev/{device})
[ "$size" = {disk.size} ] || {{ echo "/dev/{device} has $size bytes"; exit 1; }}
nbd-client -d /dev/{device} 2>&1""", 60)
    finally:
        lab.domu.ask("rm -f /etc/nbdtab")
        disk.remove()
    return line[0]
