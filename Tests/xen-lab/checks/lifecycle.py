# SPDX-License-Identifier: Apache-2.0
"""What happens to a device while it is in use: deaths on both sides, detaching, resizing, saving and restoring."""

import json
import time

from lab.domu import Disk

from .serving import Server

VERIFY = "verify --requests 64 --span 8388608"


def run(lab):
    for kind, name in (("blkback", "xvdb"), ("qdisk", "xvdc")):
        lab.check(f"{kind}: kill -9 under load, and start again", with_disk, lab, kind, name, killed)
        lab.check(f"{kind}: kill -9 under load, and reset", with_disk, lab, kind, name, reset)
        lab.check(f"{kind}: detached under load, attached again", with_disk, lab, kind, name, detached)
        lab.check(f"{kind}: resized under load", with_disk, lab, kind, name, resized)
    lab.check("qdisk: QEMU killed under load", with_disk, lab, "qdisk", "xvdc", qemu_killed)
    lab.check("blkback: unbound under load", with_disk, lab, "blkback", "xvdb", unbound)


def with_disk(lab, kind, name, body, *arguments):
    disk = Disk(lab.dom0, lab.domu.id, kind, name)
    disk.create()
    disk.attach()
    try:
        return body(lab, disk, *arguments)
    finally:
        lab.domu.ask("kill -9 $(pidof xbd-user) 2>/dev/null; pkill -f lab-client; true")
        disk.remove()


def load(server, seconds=60):
    """Starts a load in the background and waits until it has done something."""
    server.domu.run(f"""
setsid lab-client {server.socket} load --seconds {seconds} >{server.files}.load 2>&1 </dev/null &
echo $! >{server.files}.loadpid
for i in $(seq 300); do
  grep -q begun {server.files}.load && break
  sleep 0.1
done
grep -q begun {server.files}.load || {{ cat {server.files}.load; exit 1; }}
sleep 1""", 120)


def loaded(server, seconds=60):
    """What the load said in the end; it may have met errors, but it has ended."""
    said = server.domu.run(f"""
for i in $(seq {seconds * 10}); do
  [ -d /proc/$(cat {server.files}.loadpid) ] || break
  sleep 0.1
done
[ -d /proc/$(cat {server.files}.loadpid) ] && echo "the load hangs"
cat {server.files}.load""", seconds * 3 + 30)
    assert "hangs" not in said, f"{said}; xbd-user: {server.errors()[-1500:]}"
    return said


def undisturbed(server, seconds):
    """The same of a load that must not have noticed anything."""
    said = loaded(server, seconds)
    assert "requests" in said and "then" not in said and "not what" not in said, \
        f"the load said: {said}; xbd-user: {server.errors()[-1500:]}"
    return said


def ended(server, seconds=60):
    """Waits for a server that has to end by itself; returns what it said."""
    server.domu.run(f"""
for i in $(seq {seconds * 10}); do
  [ -d /proc/{server.pid} ] || exit 0
  sleep 0.1
done
echo "xbd-user did not end"
exit 1""", seconds * 3 + 30)
    return server.errors().strip()


def killed(lab, disk):
    with Server(lab, disk) as server:
        for _ in range(3):
            load(server)
            server.kill()
            loaded(server)
            server.start()
            server.client(VERIFY)
    return "three times"


def reset(lab, disk):
    with Server(lab, disk) as server:
        load(server)
        server.kill()
        loaded(server)
        said = lab.domu.run(f"xbd-user reset {disk.name}", 90)
        disk.wait_backend(2, 20)
        left = lab.domu.run(f"xenstore-list device/vbd/{disk.number}").split()
        stale = [key for key in left if key.startswith(("ring-", "event-", "queue-", "multi-"))]
        assert not stale, f"reset left {stale}"
        server.start()
        server.client(VERIFY)
    return said


def detached(lab, disk):
    server = Server(lab, disk)
    server.start()
    load(server)
    answer = disk.detach()
    assert answer, f"xl block-detach failed: {answer.text}"
    said = ended(server)
    load_said = loaded(server)
    assert "requests, then" in load_said, f"the load did not see an error: {load_said}"
    disk.attach()
    with Server(lab, disk) as server:
        server.client(VERIFY)
    return said.splitlines()[-1] if said else "ended without a word"


def resized(lab, disk):
    """Larger, twice; a client that connects afterwards sees it. (Under load a file cannot become smaller: writes extend it.)"""
    with Server(lab, disk, "-v") as server:
        for size in (disk.size + (8 << 20), disk.size + (16 << 20)):
            load(server, 15)
            resize(lab, disk, size)
            undisturbed(server, 90)
            for _ in range(20):
                seen = json.loads(server.client("sizes"))["size"]
                if seen == size:
                    break
                time.sleep(1)
            assert seen == size, f"the size is {size}, a client sees {seen}; published: " + \
                lab.dom0.run(f"xenstore-read {disk.backend}/sectors")
            server.client("edges")
        server.client(VERIFY)


def resize(lab, disk, size):
    lab.dom0.run(f"truncate -s {size} {disk.image}")
    if disk.kind == "blkback":
        lab.dom0.run(f"losetup -c {disk.loop}")
    else:
        lab.dom0.run(f"python3 /lab/guest/qmp {disk.domain} resize {disk.image} {size}")


def qemu_killed(lab, disk):
    """Nobody tells a frontend: requests wait. It has to end when asked, and the next one to find its way."""
    server = Server(lab, disk)
    server.start()
    load(server)
    lab.dom0.run(f"kill -9 $(cat /run/qemu-{disk.domain}.pid); sleep 1")
    begin = time.monotonic()
    server.stop()
    seconds = time.monotonic() - begin
    loaded(server)
    # Another QEMU does not take over nodes at state 4: the toolstack attaches the disk anew.
    disk.detach(force=True)
    lab.dom0.ask(f"xenstore-rm {disk.backend}")
    disk.forget()
    disk.attach()
    with Server(lab, disk) as server:
        server.client(VERIFY)
    return f"ended {seconds:.0f} s after SIGTERM; served again by another QEMU"


def unbound(lab, disk):
    """blkback may be bound again, so that its driver leaves the state at Connected when it lets go of the ring
    (Linux, xenbus_dev_remove and `allow_rebind`): nothing tells a frontend but the answers that do not come."""
    server = Server(lab, disk, "--request-timeout 10")
    server.start()
    load(server)
    device = f"vbd-{disk.domain}-{disk.number}"
    lab.dom0.run(f"timeout 60 bash -c 'echo {device} >/sys/bus/xen-backend/drivers/vbd/unbind'", 120)
    said = ended(server)
    loaded(server)
    # Nothing tells a backend that is bound again about a disk that was there before: the toolstack attaches it anew.
    disk.detach(force=True)
    library = f"/libxl/{disk.domain}/device/vbd/{disk.number}"
    lab.dom0.ask(f"xenstore-rm {disk.backend}; xenstore-rm {disk.frontend}; xenstore-rm {library}")
    disk.attach()
    with Server(lab, disk) as server:
        server.client(VERIFY)
    return said.splitlines()[-1] if said else "ended without a word"


def saved_and_restored(lab):
    for kind, name in (("blkback", "xvdb"), ("qdisk", "xvdc")):
        lab.check(f"{kind}: xl save and xl restore under load", with_disk, lab, kind, name, saved)
    lab.check("blkback: xl save and xl restore under load, 4 queues", with_disk, lab, "blkback", "xvdb", saved, "--queues 4")
    lab.check("blkback: xl save -c and xl pause under load", with_disk, lab, "blkback", "xvdb", checkpointed)


def saved(lab, disk, options=""):
    """The load keeps what it wrote in memory, which is saved with the domain, and compares at the end. Twice, because
    what the first restore left in the kernel is what the second one finds."""
    server = Server(lab, disk, "-v " + options)
    server.start()
    try:
        for _ in range(2):
            load(server, 12)
            lab.dom0.run("rm -f /var/saved; xl save domu /var/saved", 300)
            # What it writes goes into a file: QEMU's would keep this line open.
            restored = lab.dom0.ask("xl restore /var/saved >/run/restore 2>&1 || { cat /run/restore; exit 1; }", 300)
            assert restored, f"xl restore failed: {restored.text}"
            lab.domu.connect()
            disk.moved_to(lab.domu.id)
            said = undisturbed(server, 120)
            server.client(VERIFY)
        server.stop()
        assert server.errors().count("connected again") == 2, f"xbd-user said: {server.errors()}"
        kernel_is_well(lab)
        return "twice; the load then: " + said.splitlines()[-1]
    finally:
        lab.dom0.ask("rm -f /var/saved")
        lab.domu.revive()


def checkpointed(lab, disk):
    """The domain goes on as it was: nothing is shared anew, nothing is lost."""
    with Server(lab, disk) as server:
        load(server, 12)
        lab.dom0.run("rm -f /var/saved; xl save -c domu /var/saved; status=$?; rm -f /var/saved; exit $status", 300)
        lab.dom0.run("xl pause domu; sleep 3; xl unpause domu")
        said = undisturbed(server, 120)
        server.client(VERIFY)
        assert "again" not in server.errors(), f"xbd-user said: {server.errors()}"
    kernel_is_well(lab)
    return said.splitlines()[-1]


def kernel_is_well(lab):
    """Linux's drivers have bugs that a frontend can run into; none may be in its log."""
    found = lab.domu.ask("dmesg | grep -A 12 -E 'kernel BUG|WARNING:|Oops|general protection|hung task'")
    assert not found, f"the domU's kernel says: {found.text}"
