# SPDX-License-Identifier: Apache-2.0
"""Xen and a kernel from Debian's packages: downloaded and unpacked, never installed on this machine."""

import gzip
import lzma
import os
import re
import shutil
import struct
import subprocess

from .progress import LabError, run

HYPERVISOR = "xen-hypervisor-4.17-amd64"
# The cloud kernels have no CONFIG_XEN_DOM0; this is the full one.
KERNEL = "linux-image-amd64"


def apt(*arguments):
    answer = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if answer.returncode != 0:
        raise LabError(f"{' '.join(arguments)} failed: {answer.stderr.strip() or answer.stdout.strip()}")
    return answer.stdout


def candidate(package):
    """The version that apt would install."""
    found = re.search(r"Candidate: (\S+)", apt("apt-cache", "policy", package))
    if not found or found[1] == "(none)":
        raise LabError(f"apt knows no package {package}; run apt-get update, or use Debian 12")
    return found[1]


def kernel_package():
    found = re.search(r"Depends: (linux-image-\S+)", apt("apt-cache", "depends", KERNEL))
    if not found:
        raise LabError(f"apt does not say which kernel {KERNEL} depends on")
    return found[1]


def codename():
    with open("/etc/os-release") as text:
        found = re.search(r"^VERSION_CODENAME=(\S+)$", text.read(), re.M)
    if not found:
        raise LabError("/etc/os-release names no Debian release")
    return found[1]


def mirror(release):
    """Where apt has this release's main component from."""
    targets = apt("apt-get", "indextargets", "--format", "$(SITE) $(CODENAME) $(COMPONENT)", "Created-By: Packages")
    for line in targets.splitlines():
        parts = line.split()
        if parts[1:] == [release, "main"]:
            return parts[0]
    raise LabError(f"apt has no source for {release} main, which debootstrap needs")


def versions():
    """What the images depend on besides the lab's own files."""
    kernel = kernel_package()
    return {"release": codename(), HYPERVISOR: candidate(HYPERVISOR), kernel: candidate(kernel)}


def fetch(directory, log):
    """Downloads and unpacks hypervisor and kernel into a directory; leaves `xen`, `vmlinux` and `modules` there."""
    debs = os.path.join(directory, "debs")
    os.makedirs(debs)
    kernel = kernel_package()
    run(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3", "download", HYPERVISOR, kernel],
        log, "downloading Xen and the kernel", cwd=debs)
    unpacked = os.path.join(directory, "unpacked")
    for name in sorted(os.listdir(debs)):
        run(["dpkg", "-x", os.path.join(debs, name), unpacked], log, f"unpacking {name}")
    with gzip.open(find(unpacked + "/boot", r"xen-.*\.gz")) as packed, open(directory + "/xen", "wb") as out:
        shutil.copyfileobj(packed, out)
    with open(find(unpacked + "/boot", r"vmlinuz-.*"), "rb") as image, open(directory + "/vmlinux", "wb") as out:
        out.write(payload(image.read()))
    modules = find(unpacked + "/lib/modules", r".*")
    run(["depmod", "-b", unpacked, os.path.basename(modules)], log, "depmod")
    shutil.move(modules, directory + "/modules")
    with open(directory + "/release", "w") as out:
        out.write(os.path.basename(modules))
    shutil.rmtree(unpacked)
    shutil.rmtree(debs)


def find(directory, pattern):
    names = [name for name in sorted(os.listdir(directory)) if re.fullmatch(pattern, name)]
    if not names:
        raise LabError(f"the packages have nothing like {pattern} in {directory}")
    return os.path.join(directory, names[0])


def payload(image):
    """The ELF file inside a bzImage (Documentation/x86/boot.rst: payload_offset, payload_length)."""
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    begin = (setup_sectors + 1) * 512 + offset
    packed = image[begin : begin + length - 4]  # the last four bytes are the unpacked size
    if packed[:6] == b"\xfd7zXZ\0":
        return lzma.LZMADecompressor().decompress(packed)
    if packed[:2] == b"\x1f\x8b":
        return gzip.decompress(packed)
    if packed[:4] == b"\x28\xb5\x2f\xfd":
        return subprocess.run(["zstd", "-dc"], input=packed, stdout=subprocess.PIPE, check=True).stdout
    raise LabError(f"the kernel is packed in a way that the lab does not know (magic {packed[:6].hex()})")
