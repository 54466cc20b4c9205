# SPDX-License-Identifier: Apache-2.0
"""One line for each check, then PASS or FAIL; the same as JSON."""

import json
import os
import time
import traceback

from .progress import LabError, say


class Report:
    def __init__(self, directory):
        self.directory = directory
        self.checks = []
        self.figures = {}
        self.facts = {}

    def check(self, name, body, *arguments):
        """Runs one check; an exception is its failure, a string that it returns is shown."""
        begin = time.monotonic()
        failure = note = None
        try:
            note = body(*arguments)
        except LabError:
            raise
        except Exception as error:  # noqa: BLE001, whatever it is, it failed this check and not the next
            failure = f"{error}" if isinstance(error, (AssertionError, TimeoutError)) else traceback.format_exc()
        seconds = round(time.monotonic() - begin, 1)
        self.checks.append({"name": name, "ok": failure is None, "seconds": seconds, "note": note, "failure": failure})
        say(f"{'ok  ' if failure is None else 'FAIL'} {name} ({seconds} s){': ' + note if note else ''}")
        if failure is not None:
            print("\n".join("           " + line for line in failure.strip().splitlines()[-25:]), flush=True)
        self.write()
        return failure is None

    def write(self):
        with open(self.directory + "/results.json", "w") as out:
            json.dump({"facts": self.facts, "checks": self.checks, "figures": self.figures}, out, indent=1)
            out.write("\n")

    def finish(self, problem=None):
        failed = [check["name"] for check in self.checks if not check["ok"]]
        if problem:
            print(problem, flush=True)
        print(f"{len(self.checks) - len(failed)} passed, {len(failed)} failed"
              f"; logs and results.json in {os.path.abspath(self.directory)}")
        good = not failed and not problem and bool(self.checks)
        print("PASS" if good else "FAIL", flush=True)
        return 0 if good else 1
