# SPDX-License-Identifier: Apache-2.0
"""Every combination of what frontend and backend may agree on, with every byte checked."""

import json

from lab.domu import Disk

from .serving import NBD_DOWN, NBD_UP, SUM, Server, filesystem

VERIFY = "verify --requests 96 --span 8388608"


def run(lab):
    for kind, name in (("blkback", "xvdb"), ("qdisk", "xvdc")):
        disk = Disk(lab.dom0, lab.domu.id, kind, name)
        disk.create()
        disk.attach()
        for order in range(5):
            lab.check(f"{kind}: rings of {1 << order} pages", ring, lab, disk, order)
        lab.check(f"{kind}: 4 queues asked for", queues, lab, disk)
        lab.check(f"{kind}: --no-persistent", plain, lab, disk, "--no-persistent")
        lab.check(f"{kind}: --grants per-request", plain, lab, disk, "--grants per-request --no-persistent")
        lab.check(f"{kind}: bounced and not persistent", plain, lab, disk, "--copy bounce --no-persistent")
        lab.check(f"{kind}: --indirect 11", plain, lab, disk, "--indirect 11")
        lab.check(f"{kind}: --indirect 32, small pool", plain, lab, disk, "--indirect 32 --pool-pages 64")
        lab.check(f"{kind}: --trusted no", plain, lab, disk, "--trusted no")
        disk.remove()
        lab.check(f"{kind}: read-only", readonly, lab, kind, name)
        lab.check(f"{kind}: xfs", xfs, lab, kind, name)
        lab.check(f"{kind}: ext4 made by us, mounted by the kernel's blkfront, and back", both, lab, kind, name)


def plain(lab, disk, options):
    with Server(lab, disk, options) as server:
        return server.client(VERIFY)


def ring(lab, disk, order):
    with Server(lab, disk, f"--ring-order {order}") as server:
        answer = lab.domu.ask(f"xenstore-read device/vbd/{disk.number}/ring-page-order")
        used = int(answer.text) if answer else 0
        assert used == order, f"the ring has order {used}, asked for was {order}"
        return server.client(VERIFY)


def queues(lab, disk):
    """Four connections, which four queues serve if the backend has them."""
    with Server(lab, disk, "--queues 4 --ring-order 0") as server:
        answer = lab.domu.ask(f"xenstore-read device/vbd/{disk.number}/multi-queue-num-queues")
        used = int(answer.text) if answer else 1
        wanted = 4 if disk.kind == "blkback" else 1
        assert used == wanted, f"{used} queues, expected were {wanted}"
        server.client("fill --seed 7")
        lab.domu.run(f"""
nbdcopy -C 4 'nbd+unix:///?socket={server.socket}' /tmp/copy
nbdcopy -C 4 /tmp/copy 'nbd+unix:///?socket={server.socket}'
rm /tmp/copy""", 120)
        server.client("check --seed 7")
        server.stop()
        used = [queue["reads"] + queue["writes"] for queue in server.statistics()["queues"]]
        assert len(used) == wanted and all(used), f"requests of the queues: {used}"
        server.start()
        return f"requests of the queues: {used}"


def readonly(lab, kind, name):
    disk = Disk(lab.dom0, lab.domu.id, kind, name, readonly=True)
    disk.create()
    disk.attach()
    try:
        with Server(lab, disk) as server:
            server.client("readonly")
    finally:
        disk.remove()


def xfs(lab, kind, name):
    disk = Disk(lab.dom0, lab.domu.id, kind, name, size=320 << 20)
    disk.create()
    disk.attach()
    try:
        with Server(lab, disk) as server:
            filesystem(lab, server, "xfs")
    finally:
        disk.remove()


def both(lab, kind, name):
    """A filesystem that the kernel's frontend and ours mount in turn; the refusal while it is the kernel's."""
    disk = Disk(lab.dom0, lab.domu.id, kind, name)
    disk.create()
    disk.attach()
    try:
        with Server(lab, disk) as server:
            ours = filesystem(lab, server)
        kernels = lab.domu.run(f"""
set -e
{to_kernel(disk)}
mount -t ext4 /dev/{disk.name} /mnt
{SUM}
cp -r /mnt/tree/1 /mnt/tree/by-the-kernel
sync
umount /mnt
e2fsck -f -n /dev/{disk.name} >/run/fsck 2>&1 || {{ cat /run/fsck; exit 1; }}""", 180)
        # The line before the sum is what `reset` has to say.
        kernels = kernels.splitlines()[-1]
        assert kernels == ours, f"the kernel's blkfront finds another tree: {kernels} / {ours}"
        listed = json.loads(lab.domu.run("xbd-user list --json"))
        driver = next(row.get("driver") for row in listed if row["number"] == disk.number)
        assert driver == "vbd", f"list says that {driver} drives the device; it is the kernel's vbd"
        refused = lab.domu.ask(f"xbd-user serve {disk.name} --socket /run/refused.sock", 60)
        assert not refused and "blkfront drives" in refused.text and "unbind" in refused.text, \
            f"serve did not refuse a device of the kernel's: status {refused.status}, {refused.text}"
        lab.domu.run(f"echo vbd-{disk.number} >/sys/bus/xen/drivers/vbd/unbind; modprobe -r xen-blkfront", 60)
        with Server(lab, disk) as server:
            lab.domu.run(f"""
set -e
{NBD_UP.format(socket=server.socket)}
trap 'cd /; umount /mnt 2>/dev/null || true; {NBD_DOWN} || true' EXIT
e2fsck -f -n /dev/nbd0 >/run/fsck 2>&1 || {{ cat /run/fsck; exit 1; }}
mount -t ext4 /dev/nbd0 /mnt
cmp /mnt/tree/1/1 /mnt/tree/by-the-kernel/1
umount /mnt""", 120)
        return refused.text.strip()
    finally:
        lab.domu.ask(f"umount /mnt; echo vbd-{disk.number} >/sys/bus/xen/drivers/vbd/unbind; modprobe -r xen-blkfront", 60)
        disk.remove()


def to_kernel(disk, parameters=""):
    """Gives a device that we had to the kernel's blkfront: `reset` first, or it does not look at it."""
    return f"""
xbd-user reset {disk.name}
[ -d /sys/bus/xen/drivers/vbd ] || modprobe xen-blkfront {parameters}
[ -e /sys/bus/xen/devices/vbd-{disk.number}/driver ] || echo vbd-{disk.number} >/sys/bus/xen/drivers/vbd/bind
for i in $(seq 300); do
  [ -b /dev/{disk.name} ] && [ "$(cat /sys/block/{disk.name}/size)" != 0 ] && break
  sleep 0.1
done
[ -b /dev/{disk.name} ]"""
