# SPDX-License-Identifier: Apache-2.0
"""Asks the agent in a domain to run scripts: the host's end of guest/agent."""

import base64
import re
import select
import socket
import time

from .progress import LabError


class Answer:
    """What a script wrote, and its status."""

    def __init__(self, status, text):
        self.status = status
        self.text = text

    def __bool__(self):
        return self.status == 0


class Agent:
    """A line to a domain, over a socket of QEMU's."""

    def __init__(self, name, path, log, alive):
        self.name = name
        self.log = log
        self.alive = alive
        self.number = 0
        self.buffer = b""
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.socket.setblocking(False)

    def wait_until_ready(self, seconds):
        """Asks until somebody answers; a domain that boots throws away what it is told before."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                self.ask("true", 3)
                return
            except TimeoutError:
                pass
        raise LabError(f"{self.name} did not come up within {seconds} s; see {self.log.name}")

    def ask(self, script, seconds=60):
        """Runs a script and waits for its end; raises TimeoutError past the time given."""
        self.number += 1
        wanted = self.number
        self._send(f"{wanted} {base64.b64encode(script.encode()).decode()}\n".encode())
        chunks = []
        end = time.monotonic() + seconds
        while True:
            line = self._line(end)
            if line is None:
                raise TimeoutError(f"{self.name} gave no answer within {seconds} s to: {script.strip()[:200]}")
            found = re.search(r"@@(\d+)([+=]) (\S+)", line)
            if not found:
                if line.strip():
                    self.log.write(line + "\n")
                    self.log.flush()
                continue
            if int(found[1]) != wanted:
                continue
            if found[2] == "+":
                chunks.append(found[3])
                continue
            text = base64.b64decode("".join(chunks)).decode(errors="replace")
            status = int(found[3])
            self.log.write(f"$ {script.strip()}\n{text}")
            if status != 0:
                self.log.write(f"(status {status})\n")
            self.log.flush()
            return Answer(status, text)

    def tell(self, text, seconds=90):
        """Gives a line to the program that a script has put at /run/party.in, and returns its answer."""
        self.number += 1
        self._send(f"{self.number} >{text}\n".encode())
        end = time.monotonic() + seconds
        while True:
            line = self._line(end)
            if line is None:
                raise TimeoutError(f"{self.name} gave no answer within {seconds} s to: {text[:200]}")
            found = re.search(rf"@@{self.number}> (.*)", line)
            if found:
                self.log.write(f"> {text}\n{found[1]}\n")
                return found[1]

    def run(self, script, seconds=60):
        """The output of a script that has to succeed."""
        answer = self.ask(script, seconds)
        if not answer:
            raise AssertionError(f"in {self.name}, status {answer.status}: {script.strip()}\n{answer.text.strip()[-1500:]}")
        return answer.text.strip()

    def _send(self, data):
        while data:
            select.select([], [self.socket], [], 10)
            try:
                data = data[self.socket.send(data[:512]) :]
            except BlockingIOError:
                self.alive()
            except OSError as error:
                raise LabError(f"QEMU has gone ({error}); see qemu.log beside this run's other logs") from error

    def _line(self, end):
        while b"\n" not in self.buffer:
            left = end - time.monotonic()
            if left <= 0:
                return None
            self.alive()
            if select.select([self.socket], [], [], min(left, 1))[0]:
                data = self.socket.recv(65536)
                if not data:
                    raise LabError("QEMU has gone; see qemu.log beside this run's other logs")
                self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        return line.decode(errors="replace").rstrip("\r")
