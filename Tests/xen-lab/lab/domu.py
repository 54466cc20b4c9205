# SPDX-License-Identifier: Apache-2.0
"""A PV domU with xbd-user in it, and the disks that dom0 gives it."""

import os
import shutil
import subprocess

from . import tree
from .progress import LabError, say

HERE = os.path.dirname(os.path.abspath(__file__))
# Letters of the devices that are in use: xvdb and on.
FIRST_DEVICE = 51728

CONFIG = """name = "{name}"
type = "pv"
kernel = "/var/vmlinux"
ramdisk = "/var/domu.cpio"
memory = {memory}
vcpus = {vcpus}
extra = "console=hvc0 quiet loglevel=4 panic=1 {mode}"
on_crash = "destroy"
on_reboot = "destroy"
on_poweroff = "destroy"
vif = []
disk = []
"""


def pack(images, share, program, party=None):
    """Makes the domU's initial root: the cached tree, then what changes with every build.

    - party: with what the full run needs besides, and this xen-party.
    """
    own = share + "/own"
    shutil.rmtree(own, ignore_errors=True)
    os.makedirs(own)
    tree.copy_program(program, own)
    # For dom0, which runs xbd-user from here too.
    tree.copy_program("nbd-client", own)
    for name, place in (("domu-init", "/init"), ("agent", "/usr/bin/lab-agent"), ("client.py", "/usr/bin/lab-client")):
        tree.copy_file(f"{HERE}/../guest/{name}", own, place)
        os.chmod(own + place, 0o755)
    if party:
        tree.copy_program(party, own)
        compiler = shutil.which("clang") or shutil.which("cc")
        if not compiler:
            raise LabError("neither clang nor cc is in PATH, and the comparison's load is C")
        command = [compiler, "-O2", "-o", own + "/usr/bin/lab-load", HERE + "/../guest/load.c"]
        if subprocess.run(command).returncode != 0:
            raise LabError(f"{' '.join(command)} failed")
    tree.archive(images + "/domu-root", share + "/domu.cpio")
    tree.archive(own, share + "/own.cpio")
    with open(share + "/domu.cpio", "ab") as out, open(share + "/own.cpio", "rb") as more:
        # The kernel wants each archive of several to begin at a multiple of four bytes.
        out.write(b"\0" * (-out.tell() % 4))
        shutil.copyfileobj(more, out)
    for mode in ("agent", "shell"):
        with open(f"{share}/domu-{mode}.cfg", "w") as out:
            out.write(CONFIG.format(name="domu", memory=512, vcpus=1, mode="lab=" + mode))


class DomU:
    """A domU, created and destroyed by xl, asked through its console; its name is that of the machine's port too."""

    def __init__(self, machine, name="domu"):
        self.machine = machine
        self.name = name
        self.dom0 = machine.dom0
        self.agent = machine.domu_line(name)
        self.id = None

    def create(self, memory=512, vcpus=1):
        with open(f"{self.machine.share}/{self.name}-run.cfg", "w") as out:
            out.write(CONFIG.format(name=self.name, memory=memory, vcpus=vcpus, mode="lab=agent"))
        # libxl maps what it loads, page by page, which over 9p takes a minute.
        self.dom0.run(f"cp /lab/domu.cpio /lab/vmlinux /var/ && xl create /lab/{self.name}-run.cfg", 240)
        self.connect()
        say(f"{self.name}: domain {self.id} is up")

    def connect(self):
        """Connects the machine's port of this name to the domU's console."""
        self.id = int(self.dom0.run(f"xl domid {self.name}"))
        self.dom0.run(f"/lab/guest/bridge {self.id} {self.name}")
        self.agent.wait_until_ready(120)

    def revive(self):
        """Another one in the place of one that does not answer."""
        try:
            self.ask("true", 60)
        except TimeoutError:
            say(f"{self.name}: it does not answer; another one takes its place")
            self.destroy()
            self.create()

    def destroy(self):
        self.dom0.ask(f"xl destroy {self.name}; for i in $(seq 100); do xl domid {self.name} >/dev/null 2>&1 || break; sleep 0.1; done", 60)
        self.id = None

    def ask(self, script, seconds=60):
        return self.agent.ask(script, seconds)

    def run(self, script, seconds=60):
        return self.agent.run(script, seconds)

    def tell(self, text):
        return self.agent.tell(text)


class Disk:
    """A disk that a backend in dom0 serves to a domain: `kind` is "blkback" or "qdisk"."""

    def __init__(self, dom0, domain, kind, name="xvdb", size=64 << 20, readonly=False, image=None):
        self.dom0 = dom0
        self.domain = domain
        self.kind = kind
        self.name = name
        self.number = FIRST_DEVICE + 16 * (ord(name[-1]) - ord("b"))
        self.size = size
        self.mode = "r" if readonly else "w"
        self.image = image or f"/disks/{kind}-{domain}-{name}.img"
        back = "vbd" if kind == "blkback" else "qdisk"
        self.backend = f"/local/domain/0/backend/{back}/{domain}/{self.number}"
        self.frontend = f"/local/domain/{domain}/device/vbd/{self.number}"
        self.loop = None

    def moved_to(self, domain):
        """The domain has another number since it was restored."""
        self.backend = self.backend.replace(f"/{self.domain}/{self.number}", f"/{domain}/{self.number}")
        self.frontend = f"/local/domain/{domain}/device/vbd/{self.number}"
        self.domain = domain

    def create(self):
        self.dom0.run(f"truncate -s {self.size} {self.image}")

    def attach(self, attached=True):
        """What `xl block-attach` does; blkback's own device is a loop device over the image.

        QEMU removes a detached disk's nodes by itself, late, and then takes those of the next disk of that name with it:
        so a disk that vanishes is attached again.
        """
        for attempt in range(3):
            self._attach()
            if not attached:
                return
            try:
                return self.wait_backend(2, 30)
            except AssertionError:
                if attempt == 2 or self.dom0.ask(f"xenstore-exists {self.backend}/params"):
                    raise
                self.forget()

    def forget(self):
        """Takes away the frontend's nodes and libxl's record: it stays where a backend's went by themselves, and refuses
        the next disk of that name."""
        self.dom0.ask(f"xenstore-rm {self.frontend}; xenstore-rm /libxl/{self.domain}/device/vbd/{self.number}")

    def _attach(self):
        if self.kind == "blkback":
            if not self.loop:
                self.loop = self.dom0.run(f"losetup -f --show {self.image}")
            what = f"format=raw,vdev={self.name},access={self.mode},backendtype=phy,script=/lab/guest/block,target={self.loop}"
        else:
            self.dom0.run(f"/lab/guest/qdisk-server {self.domain}")
            if self.mode == "r":
                self.dom0.run(f"python3 /lab/guest/qmp {self.domain} read-only {self.name} {self.image}")
                return
            what = f"format=raw,vdev={self.name},access={self.mode},backendtype=qdisk,target={self.image}"
        self.dom0.run(f"xl block-attach {self.domain} '{what}'", 90)

    def wait_backend(self, state, seconds):
        answer = self.dom0.ask(
            f"for i in $(seq {seconds * 10}); do s=$(xenstore-read {self.backend}/state 2>/dev/null); "
            f"[ \"$s\" = {state} ] && exit 0; [ -n \"$s\" ] || [ $i -lt 30 ] || break; sleep 0.1; done; echo the backend stays at \"$s\"; exit 1", seconds * 4 + 20)
        if not answer:
            raise AssertionError(f"{self.backend}: {answer.text.strip()}, wanted {state}")

    def detach(self, force=False):
        return self.dom0.ask(f"xl block-detach {self.domain} {self.number}{' --force' if force else ''}", 90)

    def remove(self):
        """Detaches and lets go of what the backend had."""
        if self.kind == "qdisk" and self.mode == "r":
            self.dom0.ask(f"python3 /lab/guest/qmp {self.domain} remove {self.name}")
        else:
            self.detach()
        if self.dom0.ask(f"xenstore-exists {self.backend}/state"):
            self.detach(force=True)
            # What a check has broken is not the next one's trouble.
            self.dom0.ask(f"xenstore-rm {self.backend}")
        self.forget()
        if self.loop:
            self.dom0.ask(f"losetup -d {self.loop}")
            self.loop = None
        self.dom0.ask(f"rm -f {self.image}")
