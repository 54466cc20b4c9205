# SPDX-License-Identifier: Apache-2.0
"""The whole matrix: what CI runs, and then all the rest, in parts that can be run by themselves."""

from . import conformance, documents, inside, lifecycle, limits, matrix, minimal, shell, speed

PARTS = {
    "minimal": lambda lab: minimal.run(lab, cycles=200),
    "matrix": matrix.run,
    "limits": limits.run,
    "lifecycle": lifecycle.run,
    "inside": inside.run,
    "conformance": conformance.run,
    "documents": documents.run,
    "shell": shell.run,
    "speed": speed.run,
    # Last: what a restore leaves in the domU's kernel is nobody else's trouble.
    "saved": lifecycle.saved_and_restored,
}


def run(lab):
    for name, part in PARTS.items():
        if not lab.parts or name in lab.parts:
            part(lab)
