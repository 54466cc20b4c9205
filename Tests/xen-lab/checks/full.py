# SPDX-License-Identifier: Apache-2.0
"""The whole matrix: what CI runs, and then all the rest."""

from . import minimal


def run(lab):
    minimal.run(lab, cycles=200)
