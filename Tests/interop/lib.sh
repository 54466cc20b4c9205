# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# What the scripts beside this one share: a private directory, a server that is certainly up, and certainly gone
# at the end, and a handful of assertions. Sourced after `set -euo pipefail`.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
XBD_USER=${XBD_USER:-$repository/.build/release/xbd-user}
# Further options for every server that `serve` starts, for example XBD_SERVE_ARGS="--copy bounce".
read -r -a serve_args <<<"${XBD_SERVE_ARGS:-}"
# Who serves the image: reference, process or qemu. The runner runs each script once for each (Tests/interop/run).
backend=${XBD_BACKEND:-reference}
# Which known backend the reference backend behaves as; empty for none.
profile=${XBD_PROFILE:-}
# shellcheck disable=SC2034 # for the scripts
known_profiles=$(<"$here/known-profiles")
# What has no flush must not be asked for one: nbdcopy's option, where it may be given.
# shellcheck disable=SC2034 # for the scripts
flush_option=(--flush)
# shellcheck disable=SC2034
[[ $profile != mirage && $profile != minimal ]] || flush_option=()
# Patience with a slow machine, in tenths of a second.
patience=${XBD_PATIENCE:-300}

dir=$(mktemp -d "${TMPDIR:-/tmp}/xbd-interop-XXXXXX")
# Where servers have what is private to them, so that a killed one leaves nothing elsewhere.
export XDG_RUNTIME_DIR=$dir
started=()
mounted=()

cleanup() {
  local status=$? pid place
  trap - EXIT
  for place in "${mounted[@]:-}"; do [ -z "$place" ] || umount "$place" 2>/dev/null || umount -l "$place" 2>/dev/null || true; done
  for pid in "${started[@]:-}"; do [ -z "$pid" ] || kill -KILL "$pid" 2>/dev/null || true; done
  if [ $status != 0 ] && [ $status != 77 ]; then
    for log in "$dir"/*.err; do
      [ -s "$log" ] || continue
      echo "--- $(basename "$log")"
      tail -n 20 "$log"
    done
  fi
  rm -rf "$dir"
  exit $status
}
trap cleanup EXIT
trap 'exit 130' INT TERM

fail() {
  echo "FAIL: $*" >&2
  exit 1
}

# requires TOOL…: 77 says that the script could not be run here; the runner decides whether that will do.
# python3-libnbd, root and fuse are tools as well.
requires() {
  local tool
  for tool; do
    case $tool in
      python3-libnbd) /usr/bin/python3 -c 'import nbd' 2>/dev/null ;;
      root) [ "$(id -u)" = 0 ] ;;
      fuse) [ -w /dev/fuse ] ;;
      loop) [ -e /dev/loop-control ] && losetup -f >/dev/null 2>&1 ;;
      *) command -v "$tool" >/dev/null ;;
    esac || {
      echo "missing here: $tool"
      exit 77
    }
  done
}

[ "$backend" != qemu ] || requires /usr/libexec/xen-qemu-system-i386

# Waits until a command succeeds.
eventually() {
  local tries=0
  until "$@" >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ $tries -lt "$patience" ] || fail "gave up waiting for: $*"
    sleep 0.1
  done
}

# Starts a program in the background as $pid; its output goes to NAME.out and NAME.err.
start() {
  local name=$1
  shift
  : >"$dir/$name.out"
  "$@" >"$dir/$name.out" 2>"$dir/$name.err" </dev/null &
  pid=$!
  started+=("$pid")
}

# Is the process still running (and no zombie)?
alive() {
  local state
  state=$(sed -nE 's/^State:[[:space:]]+(.).*/\1/p' "/proc/$1/status" 2>/dev/null) || return 1
  [ -n "$state" ] && [ "$state" != Z ]
}

# disk SPEC: sets $disk, the words that give `serve` this disk by the backend that the script runs with. QEMU serves
# files: in the place of memory:SIZE it gets one.
disks=0
disk=()
disk() {
  case $backend:$1 in
    qemu:memory:*)
      disks=$((disks + 1))
      disk=("$dir/memory$disks.img" --size "${1#memory:}")
      ;;
    *) disk=("$1") ;;
  esac
  [ "$backend" = reference ] || disk+=(--backend "$backend")
  [ -z "$profile" ] || disk+=(--profile "$profile")
}

# large_sectors: sets $large, the options for sectors of 4,096 bytes; empty where the backend has none.
large=()
# shellcheck disable=SC2034 # for the scripts
large_sectors() {
  case $backend:$profile in
    qemu:* | *:qemu | *:netbsd | *:minimal) large=() ;;
    # They count in their own sectors.
    *:freebsd | *:mirage) large=(--sector-size 4096 --sectors-unit sector-size) ;;
    *) large=(--sector-size 4096) ;;
  esac
}

# serve SPEC [OPTION…]: a loopback server on a socket of its own. Sets $uri, $socket and $server, which are the
# last server's; $uri is what it printed.
servers=0
serve() {
  servers=$((servers + 1))
  socket=$dir/nbd$servers.sock
  serve_plain "$@" --socket "$socket"
}

# The same without choosing a socket.
serve_plain() {
  disk "$1"
  shift
  start "server$servers" "$XBD_USER" serve --loopback "${disk[@]}" "$@" "${serve_args[@]}"
  server=$pid
  await_uri "server$servers"
}

# Waits for the URI on the first line of a server's output.
await_uri() {
  local tries=0
  uri=
  while [ -z "$uri" ]; do
    uri=$(head -n 1 "$dir/$1.out")
    [ -z "$uri" ] || break
    alive "$pid" || fail "the server ended instead of serving: $(cat "$dir/$1.err")"
    tries=$((tries + 1))
    [ $tries -lt "$patience" ] || fail "no URI after $((patience / 10)) s"
    sleep 0.1
  done
}

# reap PID: waits for its end, bounded; sets $status.
reap() {
  local tries=0
  while alive "$1"; do
    tries=$((tries + 1))
    [ $tries -lt "$patience" ] || fail "process $1 does not end"
    sleep 0.1
  done
  status=0
  wait "$1" || status=$?
}

# stop: SIGTERM to the last server, which must end with 0.
stop() {
  kill -TERM "$server"
  reap "$server"
  [ "$status" = 0 ] || fail "the server ended with $status after SIGTERM"
}

# kill_hard PID
kill_hard() {
  kill -KILL "$1"
  wait "$1" 2>/dev/null || true
}

expect() {
  local what=$1 got=$2 wanted=$3
  [ "$got" = "$wanted" ] || fail "$what: got '$got', wanted '$wanted'"
}

contains() {
  case $2 in
    *"$3"*) ;;
    *) fail "$1: '$3' is not in: $2" ;;
  esac
}

sum() { sha256sum "$1" | cut -d ' ' -f 1; }

# refused WORD COMMAND…: the command must fail by itself, soon, with one sentence that has WORD in it.
refused() {
  local word=$1 status=0 said
  shift
  timeout -k 10 60 "$@" >"$dir/refused.out" 2>"$dir/refused.txt" </dev/null || status=$?
  said=$(cat "$dir/refused.txt")
  [ $status != 0 ] || fail "'$*' was accepted"
  [ $status != 124 ] || fail "'$*' hung"
  [ $status -lt 126 ] || fail "'$*' ended with $status: $said"
  [ "$(wc -l <"$dir/refused.txt")" = 1 ] || fail "'$*' should say one sentence: $said"
  [ ! -s "$dir/refused.out" ] || fail "'$*' printed something on stdout: $(cat "$dir/refused.out")"
  case ${said,,} in
    *"${word,,}"*) ;;
    *) fail "'$*' should mention '$word': $said" ;;
  esac
}

# python URI-aware program from stdin, with `uri`, `h` (connected) and `expect_errno` at hand.
libnbd() {
  PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$here URI=${uri:-} /usr/bin/python3 - "$@"
}

# A file of LENGTH random bytes.
random_file() { head -c "$2" /dev/urandom >"$1"; }
