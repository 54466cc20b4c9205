#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# --stats-file leaves a JSON whose counts fit what was done; SIGUSR1 prints one and the server goes on.
# profile: default; it is about the service's counters
set -euo pipefail
. "$(dirname "$0")/lib.sh"
requires nbdcopy python3

serve memory:16M --stats-file "$dir/stats.json"
nbdcopy "$uri" null:
kill -USR1 "$server"
eventually grep -q '[{]' "$dir/server$servers.err"
nbdcopy "$uri" null:
stop
/usr/bin/python3 - "$dir/stats.json" <<'PY'
import json, sys
stats = json.load(open(sys.argv[1]))
assert set(stats) >= {"service", "queues"}, stats.keys()
numbers = [n for queue in stats["queues"] for n in queue.values()]
assert numbers and all(isinstance(n, int) and n >= 0 for n in numbers), stats
# The client's connections are spread over the queues.
sums = [sum(queue[key] for queue in stats["queues"]) for key in stats["queues"][0]]
assert any(n >= 32 << 20 for n in sums), "two copies of 16 MiB are in no counter"
PY
