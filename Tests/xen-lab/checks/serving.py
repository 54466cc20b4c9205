# SPDX-License-Identifier: Apache-2.0
"""A running `xbd-user serve` in the domU, and the kernel's nbd device on it."""

import json


class Server:
    """`with Server(lab, disk, "--copy bounce") as server: server.client("verify")`"""

    def __init__(self, lab, disk, options=""):
        self.domu = lab.domu
        self.name = disk.name
        self.options = options
        self.socket = f"/run/{disk.name}.sock"
        self.files = f"/run/{disk.name}"
        self.pid = None

    def __enter__(self):
        self.start()
        return self

    def start(self):
        # setsid: what a script leaves running must not keep the agent's line.
        self.pid = self.domu.run(f"""
rm -f {self.files}.*
setsid xbd-user serve {self.name} --socket {self.socket} --pid-file {self.files}.pid --stats-file {self.files}.json \\
  {self.options} >{self.files}.out 2>{self.files}.err </dev/null &
pid=$!
for i in $(seq 600); do
  [ -s {self.files}.pid ] && {{ echo $pid; exit 0; }}
  kill -0 $pid 2>/dev/null || break
  sleep 0.1
done
cat {self.files}.err
exit 1""", 120)

    def __exit__(self, kind, *_):
        if kind is None:
            self.stop()
        else:
            self.domu.ask(f"kill {self.pid}; sleep 2; kill -9 {self.pid}; true", 30)

    def stop(self):
        """Ends it the way a person does, and wants status 0 and an answer in time."""
        self.domu.run(f"""
kill {self.pid}
for i in $(seq 300); do
  [ -d /proc/{self.pid} ] || exit 0
  sleep 0.1
done
echo "xbd-user does not end on SIGTERM"
cat {self.files}.err
kill -9 {self.pid}
exit 1""", 90)

    def kill(self):
        self.domu.run(f"kill -9 {self.pid}; while [ -d /proc/{self.pid} ]; do sleep 0.05; done", 30)

    def errors(self):
        return self.domu.ask(f"cat {self.files}.err").text

    def statistics(self):
        return json.loads(self.domu.run(f"cat {self.files}.json"))

    def client(self, what, seconds=180):
        """Runs the client; returns what it said."""
        return self.domu.run(f"lab-client {self.socket} {what}", seconds)


NBD_UP = "nbd-client -unix {socket} /dev/nbd0 -b 512 >/dev/null 2>&1"
NBD_DOWN = "nbd-client -d /dev/nbd0 >/dev/null 2>&1"
# A tree of many small files and one large: its checksum is the check.
MAKE_TREE = """
mkdir -p /mnt/tree
for d in 1 2 3 4 5; do
  mkdir -p /mnt/tree/$d
  for f in 1 2 3 4 5 6 7 8; do echo "$d $f $(date)" | sha256sum >/mnt/tree/$d/$f; done
done
dd if=/dev/urandom of=/mnt/tree/large bs=64k count=200 status=none
rm /mnt/tree/3/4; mv /mnt/tree/5 /mnt/tree/2/moved; ln -s large /mnt/tree/link
sync
"""
SUM = "(cd /mnt/tree && { find . -type f | sort | xargs sha256sum; find . | sort; } | sha256sum)"


def filesystem(lab, server, kind="ext4"):
    """mkfs, mount, a tree, umount, fsck, mount again: the tree is the same. Returns its checksum."""
    make = "mkfs.ext4 -q -F /dev/nbd0" if kind == "ext4" else "mkfs.xfs -q -f /dev/nbd0"
    look = "e2fsck -f -n /dev/nbd0 >/run/fsck 2>&1" if kind == "ext4" else "xfs_repair -n /dev/nbd0 >/run/fsck 2>&1"
    text = lab.domu.run(f"""
set -e
modprobe {kind}
{NBD_UP.format(socket=server.socket)}
trap 'cd /; umount /mnt 2>/dev/null || true; {NBD_DOWN} || true' EXIT
{make}
mount -t {kind} /dev/nbd0 /mnt
{MAKE_TREE}
before=$( {SUM} )
umount /mnt
{look} || {{ cat /run/fsck; exit 1; }}
blockdev --flushbufs /dev/nbd0
echo 3 >/proc/sys/vm/drop_caches
mount -t {kind} /dev/nbd0 /mnt
after=$( {SUM} )
umount /mnt
[ "$before" = "$after" ] || {{ echo "the tree changed: $before / $after"; exit 1; }}
echo "$after" """, 240)
    return text.strip()
