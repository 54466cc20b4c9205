#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# timeout: 600
# A hundred frontends in a row leave no page, mapping, port, watch, node, descriptor or memory behind: not with the
# host, not with the reference backend that serves them all, not with a QEMU that disks are attached to and detached
# from each time, and not in the one process of `serve --loopback`.
# backend: own; host and backends live through all of it
set -euo pipefail
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/loopback.sh"
requires /usr/libexec/xen-qemu-system-i386 xenstore-write nbdcopy python3

attaches=${XBD_ATTACHES:-100}
start_host --gntalloc-limit 4096
random_file "$dir/in" $((2 << 20))

descriptors() { find "/proc/$1/fd" -mindepth 1 | wc -l; }
maps() { wc -l <"/proc/$1/maps"; }
# Of them those of pages and tables of domains.
granted() { grep -c 'memfd:xen-' "/proc/$1/maps" || true; }
resident() { awk '/^VmRSS:/ { print $2 }' "/proc/$1/status"; }

one_frontend() {
  start_front "$1"
  nbdcopy --flush "$dir/in" "$uri"
  nbdcopy "$uri" - | cmp - "$dir/in"
  stop
  # What a frontend's end leaves is gone when its backend has closed its end.
  started=("${started[@]:0:$((${#started[@]} - 1))}")
}

# settled PROCESS: what the host has counted, and how many descriptors both have, once two looks agree.
settled() {
  local last='' now tries=0
  while :; do
    now="$("$XBD_USER" loopback status "$xen" --json) host $(descriptors "$host") backend $(descriptors "$1")"
    [ "$now" != "$last" ] || break
    last=$now
    tries=$((tries + 1))
    [ $tries -lt "$patience" ] || fail "the host does not settle: $now"
    sleep 0.1
  done
  printf '%s\n' "$now"
}

# compare WHAT PROCESS COMMAND…: runs it a few times to warm up, then as often as wanted, and looks at what is left.
compare() {
  local what=$1 process=$2 before after maps_before granted_before resident_before host_before n
  shift 2
  for n in 1 2 3 4 5; do "$@"; done
  before=$(settled "$process")
  maps_before=$(maps "$process")
  granted_before=$(granted "$process")
  resident_before=$(resident "$process")
  host_before=$(resident "$host")
  for ((n = 0; n < attaches; n++)); do "$@"; done
  after=$(settled "$process")
  if [ "$before" != "$after" ]; then
    diff <(printf '%s\n' "$before") <(printf '%s\n' "$after") || true
    fail "$what: something was left behind"
  fi
  echo "$what: $attaches attaches; maps $maps_before, $(maps "$process"); resident KiB $resident_before, $(resident "$process"); host's $host_before, $(resident "$host")"
  # Threads that a pool keeps and the allocator's arenas come and go, by a hundred in QEMU: several for each attach would show.
  [ "$(granted "$process")" = "$granted_before" ] || fail "$what: $granted_before mappings of domains, now $(granted "$process")"
  [ "$(maps "$process")" -lt $((maps_before + 250 + attaches / 2)) ] || fail "$what: mappings were left behind"
  [ "$(resident "$process")" -le $((resident_before + 4096 + 20 * attaches)) ] || fail "$what: memory was left behind"
  [ "$(resident "$host")" -le $((host_before + 1024 + 5 * attaches)) ] || fail "$what: memory was left with the host"
}

start_backend "$dir/reference.img" --size 2M
compare "reference backend" "$back_process" one_frontend xvda
end "$back_process" "reference backend"

start_qemu
truncate -s 2M "$dir/qemu.img"
turn=0
# A disk comes, a frontend and its end, and the disk goes.
attach_front_detach() {
  # QEMU lets go of a disk a moment after its nodes: the next one has another name.
  turn=$(((turn + 1) % 4))
  attach qdisk $((51728 + 16 * turn)) "raw:$dir/qemu.img"
  eventually backend_is 2
  one_frontend $((51728 + 16 * turn))
  detach
}
compare QEMU "$qemu" attach_front_detach
end "$qemu" QEMU
end "$host" host

# Host, backend and frontend in one process, which connects anew a hundred times because its domain migrates.
serve "$dir/reference.img"
host=$server
xen=$(echo "$dir"/xbd-user-*/xen)
reconnections() { grep -c 'connected again' "$dir/server$servers.err" || true; }
is_again() { [ "$(reconnections)" -gt "$1" ]; }
migrate() {
  local before
  before=$(reconnections)
  "$XBD_USER" loopback migrate 1 "$xen" >/dev/null
  # The loopback does not stop the domain meanwhile: what it asks of a ring whose grants have just ended fails.
  eventually is_again "$before"
  nbdcopy "$uri" - | cmp - "$dir/in"
}
compare "one process" "$server" migrate
stop
