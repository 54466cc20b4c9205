#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# timeout: 120
# The drop-in against Xen's headers as they are installed: each function that xengnttab.h and xenevtchn.h declare, in the
# version that the real library gives it, is bound to the drop-in, and so is everything it exports of the libraries
# beside them; what it cannot do says ENOSYS and a line.
# backend: own; nothing is served
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires python3 readelf

compiler=$(command -v cc || command -v clang || true)
[ -n "$compiler" ] || {
  echo "missing here: cc or clang"
  exit 77
}
library=${XBD_LOOPBACK_LIBRARY:-$(dirname "$XBD_USER")/libxenloopback.so}
start host "$XBD_USER" loopback "$dir/xen"
host=$pid
eventually test -s "$dir/host.out"

cat >"$dir/abi.py" <<'PY'
"""A C program from the headers: for each function, who defines it in the process, and in which version."""
import re
import subprocess
import sys

compiler, library, directory = sys.argv[1:]
LIBRARIES = ["xengnttab", "xenevtchn", "xenforeignmemory", "xendevicemodel", "xentoolcore"]
# A header's types bring other headers; a declaration's name is the first word before a bracket.
DECLARED = re.compile(r"^[a-z][\w\s\*]*?\b((?:xengnttab|xengntshr|xenevtchn|xenforeignmemory|xendevicemodel|xentoolcore)_\w+)\s*\(", re.M)


def run(*argv):
    result = subprocess.run(argv, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def exported(path):
    """Names and versions (of the defined, dynamic functions) of a library."""
    symbols = {}
    for line in run("readelf", "--dyn-syms", "--wide", path).splitlines():
        fields = line.split()
        if len(fields) >= 8 and fields[3] == "FUNC" and fields[6] != "UND":
            name, _, version = fields[7].partition("@")
            symbols[name] = version.lstrip("@")
    return symbols


def real(name):
    for line in run("/sbin/ldconfig", "-p").splitlines():
        if f"lib{name}.so." in line:
            return line.split()[-1]
    raise SystemExit(f"lib{name}.so is not installed")


ours = exported(library)
functions = {}
for name in LIBRARIES:
    text = run(compiler, "-E", "-P", "-include", f"{name}.h", "-x", "c", "/dev/null")
    declared = {f for f in DECLARED.findall(text) if f.startswith(name) or name == "xengnttab"}
    there = exported(real(name))
    for function in sorted(declared):
        assert function in there, f"{function} is declared and not in lib{name}: is the pattern wrong?"
    # The two that count are whole; of the others all that the real library has.
    wanted = declared if name in ("xengnttab", "xenevtchn") else {f for f in there if f.startswith(name)}
    wanted &= set(ours) if name == "xentoolcore" else wanted
    missing = sorted(set(wanted) - set(ours))
    assert not missing, f"lib{name}: not in the drop-in: {missing}"
    functions |= {function: there[function] for function in wanted}
    print(f"lib{name}: {len(declared)} declared, {len(there)} exported, {len(wanted)} in the drop-in")
assert len([f for f in functions if f.startswith(("xengnttab", "xengntshr"))]) >= 20, functions
assert len([f for f in functions if f.startswith("xenevtchn")]) >= 11, functions
strange = sorted(f for f in ours if not f.startswith(("xengnttab_", "xengntshr_", "xenevtchn_", "xenforeignmemory_",
                                                       "xendevicemodel_", "xentoolcore_", "xc_")))
assert not strange, f"the drop-in shows {strange}"
with open(f"{directory}/abi.c", "w") as file:
    # Declared without arguments: only the addresses are wanted, and the linker writes down the versions.
    file.write("#define _GNU_SOURCE\n#include <dlfcn.h>\n#include <stdio.h>\n#include <string.h>\n")
    for function in functions:
        file.write(f"extern void {function}(void);\n")
    file.write("int main(void) {\n  Dl_info info;\n  int bad = 0;\n")
    for function in functions:
        file.write(
            f'  if (!dladdr((void *)&{function}, &info) || !strstr(info.dli_fname, "libxenloopback.so"))\n'
            f'    bad += printf("{function} is %s\'s\\n", info.dli_fname);\n')
    file.write("  return bad != 0;\n}\n")
run(compiler, "-o", f"{directory}/abi", f"{directory}/abi.c", "-ldl", "-Wl,--no-as-needed",
    *(f"-l{name}" for name in LIBRARIES))
# What the program asks for is what the real libraries give: the versions of the header's functions.
asked = {}
for line in run("readelf", "--dyn-syms", "--wide", f"{directory}/abi").splitlines():
    fields = line.split()
    if len(fields) >= 8 and "@" in fields[7]:
        name, _, version = fields[7].partition("@")
        asked[name] = version
for function, version in functions.items():
    assert version.startswith("VERS_") and asked[function] == version, (function, version, asked.get(function))
print(f"{len(functions)} functions in {len(set(functions.values()))} versions")
with open(f"{directory}/functions", "w") as file:
    file.write("\n".join(sorted(ours)))
PY
/usr/bin/python3 "$dir/abi.py" "$compiler" "$library" "$dir"
LD_BIND_NOW=1 "$XBD_USER" loopback exec "$dir/xen" -- "$dir/abi"

# Each function that is refused: -1 or NULL, ENOSYS, and one line that names it.
"$XBD_USER" loopback exec "$dir/xen" -- /usr/bin/python3 - "$dir/functions" 2>"$dir/refusals" <<'PY'
import ctypes, errno, os, sys

lib = ctypes.CDLL(None, use_errno=True)
# What works, and what a call without a handle ends with EINVAL.
names = [n for n in open(sys.argv[1]).read().split() if n.startswith(("xc_", "xenforeignmemory_", "xendevicemodel_", "xentoolcore_"))]
refused = [n for n in names if not n.endswith(("_open", "_close"))] + [
    "xengnttab_dmabuf_exp_from_refs", "xengnttab_dmabuf_exp_wait_released", "xengnttab_dmabuf_imp_to_refs",
    "xengnttab_dmabuf_imp_release", "xenevtchn_fdopen", "xenevtchn_bind_virq"]
for name in refused:
    function = getattr(lib, name)
    function.restype = ctypes.c_void_p
    ctypes.set_errno(0)
    result = function(None, 0, 0, 0, None, None)
    low = None if result is None else result & 0xFFFFFFFF
    assert low in (None, 0xFFFFFFFF), (name, result)
    assert ctypes.get_errno() == errno.ENOSYS, (name, ctypes.get_errno())
for name in names:
    if name.endswith("_open"):
        function = getattr(lib, name)
        function.restype = ctypes.c_void_p
        handle = function(None, 0)
        assert handle, name
        assert getattr(lib, name[:-4] + "close")(ctypes.c_void_p(handle)) == 0, name
sys.stderr.flush()
print(len(refused), "functions say ENOSYS")
open(sys.argv[1], "w").write("\n".join(refused))
PY
while read -r function; do
  expect "lines about $function" "$(grep -c ": $function: a loopback Xen has no hypervisor" "$dir/refusals")" 1
done < <(cat "$dir/functions"; echo)

# QEMU that is told to give up its rights cannot, and says so instead of going on with them.
if [ -x /usr/libexec/xen-qemu-system-i386 ]; then
  status=0
  timeout 30 "$XBD_USER" loopback exec "$dir/xen" -- /usr/libexec/xen-qemu-system-i386 -M xenpv -xen-attach -xen-domid 1 \
    -xen-domid-restrict -nographic -nodefaults -no-user-config -monitor none -serial none -parallel none \
    >"$dir/qemu.out" 2>&1 || status=$?
  expect "the status of -xen-domid-restrict" "$status" 1
  contains "-xen-domid-restrict" "$(cat "$dir/qemu.out")" "xentoolcore_restrict_all: a loopback Xen has no hypervisor"
  contains "-xen-domid-restrict" "$(cat "$dir/qemu.out")" "failed to restrict: Function not implemented"
fi
kill -TERM "$host"
reap "$host"
