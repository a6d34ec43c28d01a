"""Optical inspection: synthetic boards, a detector trained on them, and what INT8 costs it.

`python -m loadtests.vision` trains, quantizes, puts the result into docs/examples/inspection, and
measures; docs/inspection.md has the tables.
"""

from __future__ import annotations

CLASSES = ("missing component", "scratch", "solder bridge", "spurious copper", "hole")
MISSING, SCRATCH, BRIDGE, COPPER, HOLE = range(len(CLASSES))
