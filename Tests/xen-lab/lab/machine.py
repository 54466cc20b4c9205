# SPDX-License-Identifier: Apache-2.0
"""The machine: one QEMU process, which ends with this one whatever happens."""

import ctypes
import os
import shutil
import signal
import subprocess
import time

from .agent import Agent
from .progress import LabError, say

HERE = os.path.dirname(os.path.abspath(__file__))
# Emulated, with all that TCG can do; the lab's Xen cannot take SMAP, and loses SSE registers between contexts unless
# it is told to save them at once. KVM is left alone: Xen's PV needs more of it than nested machines keep.
XEN = "console=com1 com1=115200,8n1 dom0_mem={dom0}M,max:{dom0}M dom0_max_vcpus={vcpus} spec-ctrl=eager-fpu"

# Virtio ports to the host, each with an agent at its other end: dom0, the domU, and another domU.
PORTS = ("dom0", "domu", "other")


def end_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Machine:
    """Xen with its dom0, in QEMU.

    - directory: where this run's files are: `share` (seen as /lab in dom0), sockets, logs
    - vcpus: of dom0; the machine has one more for a domU
    """

    def __init__(self, images, directory, vcpus=1, memory=1900, dom0_memory=900):
        self.directory = directory
        self.share = directory + "/share"
        self.images = images
        self.vcpus = vcpus
        self.memory = memory
        self.dom0_memory = dom0_memory
        self.process = None
        os.makedirs(self.share, exist_ok=True)
        os.makedirs(self.share + "/guest", exist_ok=True)
        for name in os.listdir(HERE + "/../guest"):
            shutil.copy(HERE + "/../guest/" + name, self.share + "/guest")
        shutil.copy(images + "/vmlinux", self.share)

    def command(self, shell, where="dom0"):
        kernel = "vmlinux console=hvc0 quiet loglevel=4 " + (f"lab=shell lab={where}" if shell else "lab=agent")
        images = self.images
        arguments = [
            "qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max,-smap",
            "-smp", str(self.vcpus), "-m", str(self.memory), "-nodefaults", "-no-user-config", "-display", "none",
            "-no-reboot", "-monitor", "none", "-kernel", images + "/xen",
            "-append", XEN.format(dom0=self.dom0_memory, vcpus=self.vcpus),
            "-initrd", f"{images}/vmlinux {kernel.partition(' ')[2]},{images}/dom0-initrd",
            "-drive", f"file={images}/dom0.img,if=none,id=d0,format=raw,snapshot=on", "-device", "virtio-blk-pci,drive=d0",
            "-virtfs", f"local,path={self.share},mount_tag=lab,security_model=none,multidevs=remap",
        ]
        if shell:
            return arguments + ["-serial", "mon:stdio"]
        arguments += ["-serial", f"file:{self.directory}/console.log", "-device", "virtio-serial-pci"]
        for name in PORTS:
            arguments += [
                "-chardev", f"socket,id={name},path={self.directory}/{name}.sock,server=on,wait=off",
                "-device", f"virtserialport,chardev={name},name=lab.{name}",
            ]
        return arguments

    def start(self):
        """Boots and waits for dom0's agent."""
        for name in PORTS:
            if os.path.exists(f"{self.directory}/{name}.sock"):
                os.unlink(f"{self.directory}/{name}.sock")
        self.log = open(self.directory + "/qemu.log", "w")
        self.process = subprocess.Popen(
            self.command(shell=False), stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT,
            preexec_fn=end_with_parent)
        end = time.monotonic() + 20
        while not all(os.path.exists(f"{self.directory}/{name}.sock") for name in PORTS):
            self.alive()
            if time.monotonic() > end:
                raise LabError("QEMU does not start; see " + self.log.name)
            time.sleep(0.05)
        say("machine: QEMU runs; Xen and dom0 boot")
        self.dom0 = Agent("dom0", self.directory + "/dom0.sock", open(self.directory + "/dom0.log", "w"), self.alive)
        self.dom0.wait_until_ready(240)
        say("machine: dom0 is up")

    def domu_line(self, name):
        """A line to whatever domU's console the bridge in dom0 has connected to the port of this name."""
        return Agent(name, f"{self.directory}/{name}.sock", open(f"{self.directory}/{name}.log", "a"), self.alive)

    def alive(self):
        if self.process.poll() is not None:
            with open(self.directory + "/console.log", errors="replace") as text:
                tail = "".join(text.readlines()[-12:])
            raise LabError(f"the machine stopped (QEMU's status {self.process.returncode}); its console ended with:\n{tail}")

    def stop(self):
        if not self.process or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
