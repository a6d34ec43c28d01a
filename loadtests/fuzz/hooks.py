"""What schemathesis, a process of its own, asks of each answer and counts of them."""

from __future__ import annotations

import atexit
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import schemathesis

COUNTS_FILE = "FUZZ_COUNTS"
"""The environment's variable that says where the number of answers of each status goes."""

DELIBERATE = (501, 503, 504)
"""Of the server errors: not offered, overloaded or switched off, out of time."""

_counts: Counter[int] = Counter()


@schemathesis.check
def deliberate(context: Any, answer: Any, case: Any) -> None:
    """A server error only where the server means it, and then with its reason."""
    status = answer.status_code
    _counts[status] += 1
    if status < 500:
        return
    said = answer.text[:500]
    assert status in DELIBERATE, f"status {status}: {said}"
    assert '"error"' in said, f"status {status} without a reason: {said}"


@atexit.register
def _write() -> None:
    if path := os.environ.get(COUNTS_FILE):
        Path(path).write_text(json.dumps(_counts))
