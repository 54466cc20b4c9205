# SPDX-License-Identifier: Apache-2.0
"""Small root directories: programs with their libraries, kernel modules with what they depend on."""

import os
import re
import shutil
import subprocess

from .progress import LabError, run


def libraries(program):
    """The shared libraries of a program, by the names it asks for."""
    answer = subprocess.run(["ldd", program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
    if "not found" in answer:
        raise LabError(f"{program} lacks a library on this machine: {answer.strip()}")
    return re.findall(r"(?:=> )?(/\S+) \(0x", answer)


def copy_program(program, root, place=None):
    """Copies a program, and each library to the path that ld.so would look at."""
    found = program if program.startswith("/") else shutil.which(program)
    if not found or not os.path.exists(found):
        raise LabError(f"{program} is not installed; scripts/install-deps lab installs what the lab needs")
    copy_file(found, root, place or "/usr/bin/" + os.path.basename(program))
    for library in libraries(found):
        # Swift's libraries are found through the program's RUNPATH here, and beside the system's there.
        place = library if library.startswith(("/lib", "/usr/lib")) else "/usr/lib/" + os.path.basename(library)
        copy_file(library, root, place)


def copy_file(source, root, place):
    # A root here has /bin, /sbin and /lib as links; a directory of that name in a later archive would replace them.
    target = root + re.sub(r"^/(lib|lib64|bin|sbin)/", r"/usr/\1/", place).replace("/usr/sbin/", "/usr/bin/")
    if os.path.exists(target):
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    shutil.copyfile(os.path.realpath(source), target)
    shutil.copymode(os.path.realpath(source), target)


def skeleton(root):
    """The directories of a root, with /bin, /sbin and /lib as links into /usr."""
    for name in ("usr/bin", "usr/lib", "usr/lib64", "dev", "proc", "sys", "run", "tmp", "etc", "mnt", "root", "var"):
        os.makedirs(os.path.join(root, name), exist_ok=True)
    for name in ("bin", "lib", "lib64"):
        os.symlink("usr/" + name, os.path.join(root, name))
    os.symlink("usr/bin", os.path.join(root, "sbin"))
    os.symlink("bin", os.path.join(root, "usr/sbin"))
    os.symlink("/run", os.path.join(root, "var/run"))


def busybox(root):
    """Busybox under each of its names that nothing better has taken."""
    copy_file("/bin/busybox" if os.path.exists("/bin/busybox") else "/usr/bin/busybox", root, "/usr/bin/busybox")
    names = subprocess.run([root + "/usr/bin/busybox", "--list"], stdout=subprocess.PIPE, text=True, check=True).stdout
    for name in names.split():
        place = f"{root}/usr/bin/{name}"
        if not os.path.lexists(place):
            os.symlink("busybox", place)


def modules(names, source, release, root, log):
    """Copies kernel modules with all that they depend on, and writes their indexes."""
    depends = {}
    with open(source + "/modules.dep") as text:
        for line in text:
            module, _, needs = line.partition(":")
            depends[re.sub(r"\.ko(\.\w+)?$", "", os.path.basename(module)).replace("-", "_")] = (module, needs.split())
    target = f"{root}/lib/modules/{release}"
    os.makedirs(target, exist_ok=True)
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        if os.path.exists(f"{source}/{name}"):
            shutil.copy(f"{source}/{name}", target)
    with open(source + "/modules.builtin") as text:
        builtin = {os.path.basename(line.strip())[:-3].replace("-", "_") for line in text}
    for name in names:
        key = name.replace("-", "_")
        if key in builtin:
            continue
        if key not in depends:
            raise LabError(f"the kernel has no module {name}")
        module, needs = depends[key]
        for path in [module, *needs]:
            place = os.path.join(target, path)
            if not os.path.exists(place):
                os.makedirs(os.path.dirname(place), exist_ok=True)
                shutil.copy(os.path.join(source, path), place)
    run(["depmod", "-b", root, release], log, "depmod")


def archive(root, out):
    """A root as an uncompressed cpio archive, which a kernel unpacks."""
    with open(out, "wb") as stream:
        names = subprocess.Popen(["find", ".", "-print0"], cwd=root, stdout=subprocess.PIPE)
        pack = subprocess.run(
            ["cpio", "--null", "--quiet", "-o", "-H", "newc", "-R", "0:0"], cwd=root, stdin=names.stdout, stdout=stream)
        if names.wait() != 0 or pack.returncode != 0:
            raise LabError(f"cpio could not pack {root}")
