#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# timeout: 120
# Programs linked to Debian's libxenstore, several processes at once: transactions that conflict are refused with EAGAIN
# and repeated, none is lost, and everybody who watches sees the last of them.
# backend: own; it is about xenstore
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/loopback.sh"
requires python3 xenstore-watch

start_host
export XENSTORED_PATH=$xen/dom0/xenstored.sock
timeout 100 /usr/bin/python3 - "$xen" <<'PY'
import ctypes
import errno
import multiprocessing
import os
import random
import select
import sys
import time

xen = sys.argv[1]
WORKERS, ROUNDS, ACCOUNTS, TOTAL = 6, 150, 8, 8000
seed = int(os.environ.get("XBD_SEED", random.randrange(1 << 32)))

lib = ctypes.CDLL("libxenstore.so.4", use_errno=True)
lib.xs_open.restype = ctypes.c_void_p
lib.xs_read.restype = ctypes.c_void_p
lib.xs_read_watch.restype = lib.xs_check_watch.restype = ctypes.POINTER(ctypes.c_char_p)
libc = ctypes.CDLL(None)


class Store:
    """The functions of xenstore.h that the test wants; a false result is an OSError."""

    def __init__(self, domain=0):
        os.environ["XENSTORED_PATH"] = f"{xen}/dom{domain}/xenstored.sock"
        self.handle = ctypes.c_void_p(lib.xs_open(0))
        self.check(self.handle.value)

    @staticmethod
    def check(result):
        if not result:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return result

    def read(self, path, t=0):
        length = ctypes.c_uint()
        value = self.check(lib.xs_read(self.handle, t, path.encode(), ctypes.byref(length)))
        try:
            return ctypes.string_at(value, length.value).decode()
        finally:
            libc.free(ctypes.c_void_p(value))

    def write(self, path, value, t=0):
        data = str(value).encode()
        self.check(lib.xs_write(self.handle, t, path.encode(), data, len(data)))

    def begin(self):
        return self.check(lib.xs_transaction_start(self.handle))

    def end(self, t, abort=False):
        self.check(lib.xs_transaction_end(self.handle, t, abort))

    def watch(self, path, token):
        self.check(lib.xs_watch(self.handle, path.encode(), token.encode()))

    def event(self, seconds):
        """Path and token of the next event; None when there is none in time."""
        descriptor = lib.xs_fileno(self.handle)
        until = time.monotonic() + seconds
        while True:
            if (vector := lib.xs_check_watch(self.handle)):
                pair = vector[0].decode(), vector[1].decode()
                libc.free(vector)
                return pair
            if not select.select([descriptor], [], [], max(0, until - time.monotonic()))[0]:
                return None

    def close(self):
        lib.xs_close(self.handle)


def worker(number, conflicts, ready):
    """Moves amounts between accounts and counts its moves, all or nothing."""
    generator = random.Random(seed + number)
    store = Store()
    store.watch("/bank/done", f"token-{number}")
    assert store.event(30) == ("/bank/done", f"token-{number}"), "a watch fires once at first"
    ready.wait()
    retries = 0
    for _ in range(ROUNDS):
        source, target = generator.sample(range(ACCOUNTS), 2)
        while True:
            t = store.begin()
            amount = int(store.read(f"/bank/{source}", t)) // 3
            store.write(f"/bank/{source}", int(store.read(f"/bank/{source}", t)) - amount, t)
            store.write(f"/bank/{target}", int(store.read(f"/bank/{target}", t)) + amount, t)
            store.write("/bank/moves", int(store.read("/bank/moves", t)) + 1, t)
            if generator.randrange(20) == 0:
                # Given up: as if it had never been.
                store.end(t, abort=True)
                continue
            try:
                store.end(t)
                break
            except OSError as error:
                assert error.errno == errno.EAGAIN, error
                retries += 1
    conflicts[number] = retries
    # The last write that the parent makes is seen by everybody.
    while store.event(60) is not None:
        if store.read("/bank/done") == "yes":
            store.close()
            return
    raise SystemExit(f"worker {number} was not told")


print(f"XBD_SEED={seed}", flush=True)
store = Store()
for account in range(ACCOUNTS):
    store.write(f"/bank/{account}", TOTAL // ACCOUNTS)
store.write("/bank/moves", 0)
store.write("/bank/done", "no")
conflicts = multiprocessing.Array("i", WORKERS)
ready = multiprocessing.Barrier(WORKERS + 1)
processes = [multiprocessing.Process(target=worker, args=(n, conflicts, ready)) for n in range(WORKERS)]
for process in processes:
    process.start()
ready.wait()
while int(store.read("/bank/moves")) < WORKERS * ROUNDS:
    # Whoever looks in a transaction sees every move whole.
    t = store.begin()
    held = [int(store.read(f"/bank/{account}", t)) for account in range(ACCOUNTS)]
    store.end(t, abort=True)
    assert sum(held) == TOTAL, held
    time.sleep(0.01)
store.write("/bank/done", "yes")
for process in processes:
    process.join(60)
    assert process.exitcode == 0, process
moves = int(store.read("/bank/moves"))
held = [int(store.read(f"/bank/{account}")) for account in range(ACCOUNTS)]
assert moves == WORKERS * ROUNDS and sum(held) == TOTAL, (moves, held)
assert sum(conflicts) > 0, "six processes at the same nodes never met: transactions do not conflict"
print(f"{moves} moves, {sum(conflicts)} conflicts, accounts {held}")

# A guest may only do what permissions let it: domain 1 has its home, and reads what it was given.
guest = Store(1)
for path, allowed in [("data/mine", True), ("/bank/moves", False), ("/local/domain/1/name", False)]:
    try:
        guest.write(path, "x")
        assert allowed, f"domain 1 wrote {path}"
    except OSError as error:
        assert not allowed and error.errno == errno.EACCES, (path, error)
try:
    guest.read("/bank/moves")
    raise AssertionError("domain 1 read what it has no permission for")
except OSError as error:
    assert error.errno == errno.EACCES, error
guest.close()

# A connection that goes takes its watches and its transaction along.
half = Store()
half.watch("/bank", "left behind")
t = half.begin()
half.write("/bank/moves", -1, t)
half.close()
assert int(store.read("/bank/moves")) == moves
store.close()
PY
# Nobody is connected any more but the host's own, which has neither watch nor transaction.
"$XBD_USER" loopback status "$xen" --json >"$dir/status.json"
/usr/bin/python3 - "$dir/status.json" <<'PY'
import json, sys
for domain in json.load(open(sys.argv[1])):
    assert domain["watches"] == domain["transactions"] == 0, domain
PY

# Debian's tools in two domains at once: a watcher sees what another domain's process writes.
xenstore-write /shared/node 0
xenstore-chmod /shared/node n0 b1
start watcher timeout 60 xenstore-watch -n 3 /shared/node
watcher=$pid
eventually test -s "$dir/watcher.out"
XENSTORED_PATH=$xen/dom1/xenstored.sock xenstore-write /shared/node 1
written() { [ "$(wc -l <"$dir/watcher.out")" = 2 ]; }
eventually written
expect "what domain 1 wrote" "$(xenstore-read /shared/node)" 1
xenstore-rm /shared/node
reap "$watcher"
expect "the watcher's status" "$status" 0
if xenstore-exists /shared/node; then fail "a removed node exists"; fi
expect "the list" "$(xenstore-list /shared)" ""
end "$host" host
