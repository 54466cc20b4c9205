#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# timeout: 400
# serve --reconnect starts the next QEMU when the one that serves is killed in the middle of I/O: the clients of the
# socket notice a pause and nothing else, with rings of any order, on a raw image and on a qcow2, and nothing is left
# behind in the server. The same with the reference backend's process, as each backend that is known.
# backend: own; it is about backends in processes of their own
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires python3-libnbd qemu-img /usr/libexec/xen-qemu-system-i386

descriptors() { find "/proc/$server/fd" -mindepth 1 | wc -l; }
maps() { wc -l <"/proc/$server/maps"; }
child() { pgrep -P "$server" | head -n 1; }

# Kills the backend's process every now and then for as long as the server lives; a line for each.
killer() {
  local victim last=''
  while alive "$server"; do
    sleep 0.$((RANDOM % 5 + 3))
    victim=$(child || true)
    if [ -n "$victim" ] && [ "$victim" != "$last" ] && kill -KILL "$victim"; then
      echo "$victim"
      last=$victim
    fi
  done
}

# The server's first thread, which looks after the backend, has nothing to do: ticks of 10 ms in a second.
rests() {
  local before after
  before=$(awk '{ print $14 + $15 }' "/proc/$server/task/$server/stat")
  sleep 1
  after=$(awk '{ print $14 + $15 }' "/proc/$server/task/$server/stat")
  [ $((after - before)) -lt 20 ] || fail "the server's first thread is busy with nothing: $((after - before)) ticks"
}

try() {
  local backend=$1 format=$2
  shift 2
  qemu-img create -q -f "$format" "$dir/disk.$format" 64M
  serve "$dir/disk.$format" --reconnect "$@"
  killer >"$dir/killed" 2>/dev/null &
  local killer=$!
  started+=("$killer")
  XBD_SOAK_MODEL=$dir/model libnbd 3 "" <"$here/soak.py"
  kill_hard "$killer"
  # Whatever is on its way up has come.
  eventually nbdinfo --size "$uri"
  rests
  stop
  echo "$backend${profile:+ as $profile}, $format, $*: killed $(wc -l <"$dir/killed") times"
  [ "$(wc -l <"$dir/killed")" -ge 2 ] || fail "the backend was not killed often enough to show anything"
  contains "what the server says" "$(cat "$dir/server$servers.err")" "killed by signal 9"
  [ "$format" = raw ] || qemu-img check -q -r leaks "$dir/disk.qcow2" >/dev/null 2>&1
  qemu-img compare -q -f "$format" -F raw "$dir/disk.$format" "$dir/model"
  rm "$dir/disk.$format" "$dir/model"
}

backend=qemu
for order in 0 2 4; do try qemu raw --ring-order $order; done
try qemu raw --copy bounce
try qemu qcow2
backend=process
try process raw
try process raw --queues 2 --indirect 32
for profile in $known_profiles; do
  # MirageOS's waits for the frontend, which would be patient with it for longer than it lives here.
  grace=()
  [ "$profile" != mirage ] || grace=(--initialising-grace 20)
  XBD_PROFILE=$profile try process raw "${grace[@]}"
done
profile=

# What was answered is there after a kill, flushed or not: a qcow2's new clusters as well, of which QEMU keeps note in
# its own memory for as long as it may.
backend=qemu
for format in raw qcow2; do
  qemu-img create -q -f "$format" "$dir/new.$format" 32M
  serve "$dir/new.$format" --reconnect
  libnbd "$(child)" <<'PY'
import os, signal, sys
from nbdtools import connect

h = connect()
for n in range(100):
    h.pwrite(bytes([n + 1]) * 65536, n * 3 * 65536)
os.kill(int(sys.argv[1]), signal.SIGKILL)
lost = [n for n in range(100) if h.pread(65536, n * 3 * 65536) != bytes([n + 1]) * 65536]
assert not lost, f"{len(lost)} writes were answered and are lost"
PY
  stop
done
serve "$dir/new.qcow2" --reconnect --read-only
nbdcopy "$uri" "$dir/before"
kill -KILL "$(child)"
timeout 60 nbdcopy "$uri" - | cmp - "$dir/before"
stop

# Twenty in a row, with a request in between.
backend=qemu
serve "$dir/disk.img" --size 8M --reconnect
for n in $(seq 1 23); do
  eventually child
  kill -KILL "$(child)"
  timeout 60 nbdcopy "$uri" null:
  if [ "$n" = 3 ]; then before="$(descriptors) $(maps)"; fi
done
timeout 60 nbdcopy "$uri" null:
after="$(descriptors) $(maps)"
echo "descriptors and mappings: $before, $after"
expect "descriptors" "${after% *}" "${before% *}"
[ "${after#* }" -le $((${before#* } + 8)) ] || fail "mappings were left behind: $before, $after"
stop
