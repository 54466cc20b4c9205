# SPDX-License-Identifier: Apache-2.0
"""What `xen-party checks` starts for each domain: forward.py SOCKET DOMAIN; orders go to the lab, answers come back."""

import socket
import sys


def main():
    line = socket.socket(socket.AF_UNIX)
    line.connect(sys.argv[1])
    stream = line.makefile("rw")
    stream.write(sys.argv[2] + "\n")
    stream.flush()
    for order in sys.stdin:
        stream.write(order)
        stream.flush()
        answer = stream.readline()
        if not answer:
            return
        sys.stdout.write(answer)
        sys.stdout.flush()


main()
