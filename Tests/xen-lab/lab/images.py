# SPDX-License-Identifier: Apache-2.0
"""What the lab boots, in a cache outside the tree: hypervisor, kernel, dom0's disk, and what a domU's root begins with.

A cache entry's name is a hash of everything that it is made from: this directory's builders, the versions that apt
would install, the release. A stale one is never used, and removed when the next is complete.
"""

import fcntl
import hashlib
import json
import os
import shutil

from . import packages, tree
from .progress import LabError, run, say

DOM0_PACKAGES = [
    "xen-utils-4.17", "xen-utils-common", "xenstore-utils", "qemu-system-xen", "kmod", "procps", "util-linux", "iproute2",
    "e2fsprogs",
]
DOM0_BOOT_MODULES = ["virtio_pci", "virtio_blk", "ext4", "crc32c_generic", "9pnet_virtio", "9p"]
DOM0_MODULES = [
    "virtio_console", "xen-blkback", "xen-blkfront", "xen-gntdev", "xen-gntalloc", "xen-evtchn", "xenfs", "xen-privcmd",
    "loop", "brd", "null_blk", "nbd", "dm_mod", "ext4", "crc32c_generic", "configfs",
]
DOMU_MODULES = [
    "xen-blkfront", "xen-gntdev", "xen-gntalloc", "xen-evtchn", "xenfs", "xen-privcmd", "nbd", "ext4", "xfs",
    "crc32c_generic",
]
# From this machine, so that their libraries fit the xbd-user that was built on it.
DOMU_PROGRAMS = [
    "bash", "nbd-client", "nbdinfo", "nbdcopy", "mkfs.ext4", "e2fsck", "mkfs.xfs", "xfs_repair", "xenstore-ls",
    "xenstore-read", "xenstore-write", "xenstore-rm", "xenstore-list", "xenstore-exists", "strace", "base64", "timeout",
]
PYTHON_LEFT_OUT = ("test", "idlelib", "lib2to3", "ensurepip", "tkinter", "pydoc_data", "unittest", "distutils",
                   "turtledemo", "dist-packages", "site-packages", "__pycache__")


def cache_root():
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(base, "xbd-user", "xen-lab")


def recipe():
    """A hash of what the images are made from."""
    hashed = hashlib.sha256(json.dumps(packages.versions(), sort_keys=True).encode())
    here = os.path.dirname(os.path.abspath(__file__))
    for name in ("images.py", "packages.py", "tree.py", "../guest/dom0-initrd-init"):
        with open(os.path.join(here, name), "rb") as text:
            hashed.update(text.read())
    # The domU's programs are this machine's: another version of one is another image.
    for program in DOMU_PROGRAMS:
        found = shutil.which(program)
        hashed.update(f"{program} {os.path.getsize(os.path.realpath(found)) if found else 'none'}".encode())
    return hashed.hexdigest()[:16]


def ensure():
    """The directory of images that are up to date, built first when they are not there.

    Returns it with `xen`, `vmlinux`, `dom0-initrd`, `dom0.img`, and `domu-root`, the tree a domU starts with.
    """
    root = cache_root()
    os.makedirs(root, exist_ok=True)
    with open(os.path.join(root, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        entry = os.path.join(root, recipe())
        if os.path.exists(os.path.join(entry, "complete")):
            say(f"images: cached in {entry}")
            return entry
        say("images: none that fit this recipe; building them")
        if os.geteuid() != 0:
            raise LabError("building dom0's image takes root, for debootstrap; run this as root once")
        making = entry + ".making"
        shutil.rmtree(making, ignore_errors=True)
        os.makedirs(making)
        with open(os.path.join(root, "build.log"), "w") as log:
            build(making, log)
        os.rename(making, entry)
        for name in os.listdir(root):
            place = os.path.join(root, name)
            if os.path.isdir(place) and place != entry:
                shutil.rmtree(place)
        return entry


def build(directory, log):
    say("images: Xen and the kernel, from their packages")
    packages.fetch(directory, log)
    with open(directory + "/release") as text:
        release = text.read()
    say("images: dom0's initial root")
    initrd(directory, release, log)
    say("images: the domU's root")
    domu(directory, release, log)
    say("images: dom0's root, through debootstrap (a minute)")
    dom0(directory, release, log)
    shutil.rmtree(directory + "/modules")
    open(directory + "/complete", "w").close()


def initrd(directory, release, log):
    root = directory + "/initrd"
    tree.skeleton(root)
    tree.busybox(root)
    tree.modules(DOM0_BOOT_MODULES, directory + "/modules", release, root, log)
    init = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../guest/dom0-initrd-init")
    tree.copy_file(init, root, "/init")
    os.chmod(root + "/init", 0o755)
    tree.archive(root, directory + "/dom0-initrd")
    shutil.rmtree(root)


def dom0(directory, release, log):
    root = directory + "/dom0"
    name = packages.codename()
    run(["debootstrap", "--variant=minbase", "--include=" + ",".join(DOM0_PACKAGES), name, root, packages.mirror(name)],
        log, "debootstrap")
    tree.modules(DOM0_MODULES, directory + "/modules", release, root, log)
    for waste in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/man"):
        shutil.rmtree(os.path.join(root, waste), ignore_errors=True)
    os.makedirs(root + "/lab", exist_ok=True)
    image = directory + "/dom0.img"
    with open(image, "wb") as out:
        out.truncate(1400 << 20)
    run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-d", root, image], log, "making dom0's image")
    shutil.rmtree(root)


def domu(directory, release, log):
    root = directory + "/domu-root"
    tree.skeleton(root)
    for program in DOMU_PROGRAMS:
        tree.copy_program(program, root)
    os.symlink("bash", root + "/usr/bin/sh")
    python(root)
    tree.busybox(root)
    tree.modules(DOMU_MODULES, directory + "/modules", release, root, log)
    with open(root + "/etc/passwd", "w") as out:
        out.write("root:x:0:0:root:/root:/bin/bash\n")
    with open(root + "/etc/group", "w") as out:
        out.write("root:x:0:\n")
    # What fstests and mkfs look for.
    os.symlink("/proc/self/mounts", root + "/etc/mtab")


def python(root):
    """This machine's Python with libnbd's bindings, without what no script here needs."""
    interpreter = os.path.realpath("/usr/bin/python3")
    version = os.path.basename(interpreter)
    tree.copy_program(interpreter, root, "/usr/bin/python3")
    library = "/usr/lib/" + version
    shutil.copytree(library, root + library, symlinks=False, ignore=shutil.ignore_patterns(*PYTHON_LEFT_OUT, "config-*"),
                    ignore_dangling_symlinks=True)
    for name in os.listdir(library + "/lib-dynload"):
        for needed in tree.libraries(f"{library}/lib-dynload/{name}"):
            tree.copy_file(needed, root, needed)
    bindings = "/usr/lib/python3/dist-packages"
    names = [name for name in os.listdir(bindings) if name.startswith(("nbd.py", "libnbdmod"))]
    if len(names) < 2:
        raise LabError("python3-libnbd is not installed; scripts/install-deps lab installs what the lab needs")
    for name in names:
        tree.copy_file(f"{bindings}/{name}", root, f"{bindings}/{name}")
        if name.endswith(".so"):
            for needed in tree.libraries(f"{bindings}/{name}"):
                tree.copy_file(needed, root, needed)
