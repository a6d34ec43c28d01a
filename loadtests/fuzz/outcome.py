"""What a part of a fuzz run saw."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Outcome:
    """`answers` counts them by status; `findings` say in words what should not have been."""

    answers: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = ", ".join(f"{status} {count:,}" for status, count in sorted(self.answers.items()))
        return f"{self.answers.total():,} ({parts})"
