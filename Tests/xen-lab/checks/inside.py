# SPDX-License-Identifier: Apache-2.0
"""xbd-user in dom0: its frontend beside blkback and qdisk there, and its backend for the domU's kernel."""

from lab.domu import Disk

from .serving import MAKE_TREE, SUM, Server, filesystem

# The domU's copy of the program, with the libraries it was built against.
INSTALL = """
[ -x /usr/local/bin/xbd-user ] && exit 0
cp -r /lab/own /opt/xbd
for name in xbd-user nbd-client; do
  printf '#!/bin/sh\\nexec /opt/xbd/usr/lib64/ld-linux-x86-64.so.2 --library-path /opt/xbd/usr/lib/x86_64-linux-gnu:/opt/xbd/usr/lib /opt/xbd/usr/bin/%s "$@"\\n' $name >/usr/local/bin/$name
  chmod +x /usr/local/bin/$name
done
modprobe nbd nbds_max=2; modprobe ext4
"""


class InDom0:
    """What a `Server` looks at, with dom0 in the domU's place."""

    def __init__(self, lab):
        self.dom0 = lab.dom0
        self.domu = lab.dom0


def run(lab):
    for kind, name in (("blkback", "xvde"), ("qdisk", "xvdf")):
        lab.check(f"{kind}: frontend and backend both in dom0, ext4", both, lab, kind, name)
    for options in ("", "--grant-copy", "--no-backend-persistent"):
        lab.check(f"our backend in dom0, the kernel's blkfront in the domU, ext4 {options}".strip(), serving, lab, options)


def both(lab, kind, name):
    lab.dom0.run(INSTALL, 60)
    disk = Disk(lab.dom0, 0, kind, name)
    disk.create()
    disk.attach()
    try:
        here = InDom0(lab)
        with Server(here, disk) as server:
            filesystem(here, server)
    finally:
        disk.remove()


def serving(lab, options):
    lab.dom0.run(INSTALL, 60)
    number, image = 51728 + 6 * 16, "/disks/ours.img"
    lab.dom0.run(f"""
rm -f {image}
setsid xbd-user backend {image} --size 64M --frontend-domain {lab.domu.id} --device xvdh -v {options} \\
  >/run/ours.out 2>/run/ours.err </dev/null &
echo $! >/run/ours.pid
for i in $(seq 300); do [ -s /run/ours.out ] && exit 0; sleep 0.1; done
cat /run/ours.err; exit 1""", 90)
    try:
        lab.domu.run(f"""
set -e
modprobe xen-blkfront
for i in $(seq 300); do
  [ -b /dev/xvdh ] && [ "$(cat /sys/block/xvdh/size)" != 0 ] && break
  sleep 0.1
done
[ -b /dev/xvdh ] || {{ xenstore-ls device/vbd/{number}; dmesg | tail -5; exit 1; }}
modprobe ext4
mkfs.ext4 -q -F /dev/xvdh
mount -t ext4 /dev/xvdh /mnt
trap 'cd /; umount /mnt 2>/dev/null || true' EXIT
{MAKE_TREE}
before=$( {SUM} )
umount /mnt
e2fsck -f -n /dev/xvdh >/run/fsck 2>&1 || {{ cat /run/fsck; exit 1; }}
echo 3 >/proc/sys/vm/drop_caches
mount -t ext4 /dev/xvdh /mnt
after=$( {SUM} )
umount /mnt
[ "$before" = "$after" ] || {{ echo "the tree changed"; exit 1; }}""", 240)
    finally:
        said = lab.dom0.ask("""
kill $(cat /run/ours.pid)
for i in $(seq 200); do [ -d /proc/$(cat /run/ours.pid) ] || break; sleep 0.1; done
kill -9 $(cat /run/ours.pid) 2>/dev/null
cat /run/ours.err""", 60).text
        lab.domu.ask("modprobe -r xen-blkfront", 30)
    lab.dom0.run(f"e2fsck -f -n {image} >/run/fsck 2>&1 || {{ cat /run/fsck; exit 1; }}", 60)
    return said.strip().splitlines()[-1] if said.strip() else None
