# SPDX-License-Identifier: Apache-2.0
"""gntalloc's limit of pages for a domain: enough by default, named when it is not, used when it is raised."""

from lab.domu import Disk

from .serving import Server

LIMIT = "/sys/module/xen_gntalloc/parameters/limit"


def run(lab):
    lab.check("gntalloc: the default configuration fits in 1,024 pages", limited, lab, 1024, "", None)
    lab.check("gntalloc: with 300 pages the pool is smaller, and it says why", limited, lab, 300, "", LIMIT)
    lab.check("gntalloc: with 5,000 pages the pool grows past 1,024", limited, lab, 5000, "--pool-pages 4000", None)


def limited(lab, pages, options, sentence):
    disk = Disk(lab.dom0, lab.domu.id, "blkback", "xvdb")
    disk.create()
    disk.attach()
    try:
        lab.domu.run(f"echo {pages} >{LIMIT}")
        with Server(lab, disk, "--queues 1 " + options) as server:
            server.client("verify --requests 96 --span 8388608")
            # Several at once, so that the pool is asked for all that it may have.
            lab.domu.run(f"""
clients=
for i in 1 2 3 4; do
  nbdcopy --connections=1 --requests=64 --request-size=1048576 'nbd+unix:///?socket={server.socket}' null: &
  clients="$clients $!"
done
for client in $clients; do wait $client || exit 1; done""", 180)
            server.stop()
            queue = server.statistics()["queues"][0]
            said = server.errors().strip()
            server.start()
        if sentence:
            assert sentence in said, f"nothing names {sentence}: {said}"
            assert queue["poolPages"] < 300
        else:
            assert "limit" not in said, f"unexpected: {said}"
        if pages > 1024:
            assert queue["poolPages"] > 1024, f"the pool has {queue['poolPages']} pages"
        return f"{queue['poolPages']} pages. {named(said) if sentence else ''}".strip()
    finally:
        lab.domu.ask(f"echo 1024 >{LIMIT}")
        disk.remove()


def named(said):
    """The line of several that names the parameter."""
    return next(line for line in said.splitlines() if LIMIT in line)
