# SPDX-License-Identifier: Apache-2.0
"""The servers that are compared: how each is started on a Unix socket, and what processor time it has used.

Four of them are no peers: they do nothing but move bytes (bare.c). What they reach says what the client at hand, the socket
and the storage leave to a server that has more to do.
"""

import os
import shutil
import signal
import subprocess
import time

TICK = os.sysconf("SC_CLK_TCK")


class Server:
    """One running server. `kind` is what is behind it: memory, or a file on tmpfs. `twin` is the server that has the same
    storage behind another way in: that one it is compared with, and with nobody else. `is_bare`: no peer."""

    def __init__(self, name, kind, ours, command, needs, twin=None, is_bare=False):
        self.name, self.kind, self.ours, self.twin, self.is_bare = name, kind, ours, twin, is_bare
        self.command, self.needs = command, needs
        self.process = None

    def start(self, directory, size):
        self.directory = os.path.join(directory, self.name)
        os.mkdir(self.directory)
        self.socket = os.path.join(self.directory, "s")
        self.image = os.path.join(self.directory, "disk.img")
        if self.kind == "file":
            with open(self.image, "wb") as image:
                image.truncate(size)
        argv = self.command(self, size)
        self.log = open(os.path.join(self.directory, "log"), "wb")
        self.process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True)
        self.uri = f"nbd+unix:///{'disk' if self.name == 'nbd-server' else ''}?socket={self.socket}"
        deadline = time.monotonic() + 30
        while subprocess.run(["nbdinfo", "--size", self.uri], capture_output=True).returncode != 0:
            if self.process.poll() is not None and self.name != "nbd-server":
                raise SystemExit(f"{self.name} ended instead of serving: {self.output()}")
            if time.monotonic() > deadline:
                raise SystemExit(f"{self.name} does not serve: {self.output()}")
            time.sleep(0.05)
        self.root = self.process.pid
        pid_file = os.path.join(self.directory, "pid")
        if os.path.exists(pid_file):
            self.root = int(open(pid_file).read())

    def output(self):
        self.log.flush()
        return open(self.log.name, errors="replace").read()[-2000:]

    def cpu_seconds(self):
        """utime + stime of the server and its children, living and dead."""
        children = {}
        times = {}
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                fields = open(f"/proc/{entry}/stat").read().rsplit(")", 1)[1].split()
            except OSError:
                continue
            pid = int(entry)
            children.setdefault(int(fields[1]), []).append(pid)
            # utime, stime, and cutime and cstime of children that were waited for.
            times[pid] = sum(int(fields[n]) for n in (11, 12, 13, 14))
        total, todo = 0, [self.root]
        while todo:
            pid = todo.pop()
            total += times.get(pid, 0)
            todo += children.get(pid, [])
        return total / TICK

    def alive(self):
        return os.path.exists(f"/proc/{self.root}")

    def stop(self):
        if self.process is None:
            return
        for pid in {self.root if hasattr(self, "root") else self.process.pid, self.process.pid}:
            try:
                os.kill(pid, signal.SIGTERM)
            except ProcessLookupError:
                pass
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def nbd_server(server, _):
    config = os.path.join(server.directory, "config")
    with open(config, "w") as file:
        file.write(
            f"[generic]\nunixsock = {server.socket}\nallowlist = true\n"
            f"[disk]\nexportname = {server.image}\nflush = true\nfua = true\n")
    return ["nbd-server", "-C", config, "-p", os.path.join(server.directory, "pid")]


def bare(name, kind, microseconds):
    def command(server, size):
        program = os.path.join(server.directory, "bare")
        source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bare.c")
        subprocess.run(["cc", "-O2", "-Wall", "-o", program, source], check=True)
        image = [server.image] if kind == "file" else []
        return [program, server.socket, str(size), str(microseconds), *image]

    return Server(name, kind, False, command, "cc", is_bare=True)


def all_servers(xbd, arguments):
    """Every server, ours first."""

    def ours(spec, *options):
        return lambda s, size: [
            xbd, "serve", "--loopback", spec(s, size), "--socket", s.socket, *options, *arguments]

    return [
        Server("xbd-memory", "memory", True, ours(lambda s, size: f"memory:{size}"), xbd),
        Server("xbd-file", "file", True, ours(lambda s, size: s.image), xbd),
        Server("xbd-qemu", "file", True, ours(lambda s, size: s.image, "--backend", "qemu"),
               "/usr/libexec/xen-qemu-system-i386", twin="qemu-nbd"),
        Server("nbdkit-memory", "memory", False,
               lambda s, size: ["nbdkit", "-f", "-U", s.socket, "memory", str(size)], "nbdkit"),
        Server("nbdkit-file", "file", False,
               lambda s, size: ["nbdkit", "-f", "-U", s.socket, "file", s.image], "nbdkit"),
        Server("qemu-nbd", "file", False,
               lambda s, size: ["qemu-nbd", "-t", "-e", "8", "-f", "raw", "-k", s.socket, s.image], "qemu-nbd"),
        Server("nbd-server", "file", False, nbd_server, "nbd-server"),
        bare("bare-memory", "memory", 0),
        bare("bare-memory-40", "memory", 40),
        bare("bare-file", "file", 0),
        bare("bare-file-40", "file", 40),
    ]


def available(server):
    return shutil.which(server.needs) is not None
