"""The stateful step: raw transactions to the window of features that the fraud model reads.

It keeps for each card what the features need: the payments of the last 24 hours, the mean and the
spread of all amounts, and the last 24 rows. Time is what transactions and callers say it is.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections import OrderedDict
from collections.abc import Sequence
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from loadtests.models.transactions import CATEGORIES, CHANNELS, DAY, Transaction, distance

NAMES = (
    "amount",
    "deviation",
    "times_mean",
    "count_24h",
    "sum_24h",
    "chip",
    "contactless",
    "online",
    "since_last",
    "speed",
    "abroad",
    "same_category_24h",
    "categories_24h",
    "hour_sin",
    "hour_cos",
    "known",
)
STEPS, FEATURES = 24, len(NAMES)

LATE = 3600.0
"""Seconds by which a transaction may come after newer ones and still be counted exactly."""

_time = attrgetter("time")


class CardFeatures:
    """Give it each transaction with `add`, once; it answers with the window to be scored.

    Memory is bounded: at most `cards` cards, of which the one that was idle longest makes way for
    a new one, and `payments` payments of 24 hours for each; beyond those the oldest are no longer
    counted. `evict` lets go of idle cards before that.
    """

    def __init__(self, cards: int = 100_000, payments: int = 1_000) -> None:
        if cards < 1 or payments < 1:
            raise ValueError(f"cards={cards}, payments={payments}: both must be 1 or more")
        self._most_cards, self._most_payments = cards, payments
        self._cards: OrderedDict[int, _History] = OrderedDict()

    def __len__(self) -> int:
        """Cards that are kept."""
        return len(self._cards)

    def __contains__(self, card: int) -> bool:
        return card in self._cards

    def add(self, transaction: Transaction) -> npt.NDArray[np.float32]:
        """FP32 [24, 16]: the card's last rows in the order in which they came, this one last.

        Rows before the card's first payment are zeros. Features of one row are listed in NAMES;
        24 hours are those up to and with this payment's time, one exactly 24 hours older is out.
        A late transaction is counted where it belongs by its time, and newer ones don't count for
        it; one that is more than LATE seconds late finds only a part of its 24 hours. Raises
        ValueError for a time or an amount that cannot be.
        """
        if not (math.isfinite(transaction.time) and 0 <= transaction.amount < math.inf):
            raise ValueError(
                f"card {transaction.card}: time {transaction.time} and amount "
                f"{transaction.amount} must be finite, and the amount 0 or more"
            )
        history = self._cards.get(transaction.card)
        if history is None:
            if len(self._cards) == self._most_cards:
                self._cards.popitem(last=False)
            history = self._cards[transaction.card] = _History()
        self._cards.move_to_end(transaction.card)
        return history.add(transaction, self._most_payments)

    def evict(self, now: float, idle: float = 30 * DAY) -> int:
        """Let go of cards with no payment for more than `idle` seconds before `now`; how many."""
        gone = [card for card, kept in self._cards.items() if kept.newest < now - idle]
        for card in gone:
            del self._cards[card]
        return len(gone)


class _History:
    """One card. Mean and spread of its amounts are kept by Welford's method."""

    __slots__ = ("_count", "_mean", "_recent", "_rows", "_squares", "newest")

    def __init__(self) -> None:
        self.newest = -math.inf
        self._recent: list[Transaction] = []
        self._count, self._mean, self._squares = 0, 0.0, 0.0
        self._rows = np.zeros((STEPS, FEATURES), np.float32)

    def add(self, paid: Transaction, most: int) -> npt.NDArray[np.float32]:
        before = bisect_right(self._recent, paid.time, key=_time)
        day = bisect_right(self._recent, paid.time - DAY, key=_time)
        row = self._row(paid, self._recent[day:before], self._recent[before - 1 : before])
        self._rows = np.concatenate([self._rows[1:], np.array([row], np.float32)])
        self._learn(paid, most)
        return self._rows

    def _row(
        self, paid: Transaction, day: Sequence[Transaction], last: Sequence[Transaction]
    ) -> tuple[float, ...]:
        """Counts and amounts as logarithms, so that all are of a size that networks like."""
        gap, speed = _since(last[0], paid) if last else (DAY, 0.0)
        same = sum(other.category == paid.category for other in day)
        angle = paid.time % DAY / DAY * math.tau
        return (
            math.log1p(paid.amount) / 4,
            self._deviation(paid.amount),
            math.log((paid.amount + 1) / (self._mean + 1)) if self._count else 0.0,
            math.log1p(len(day) + 1),
            math.log1p(sum(other.amount for other in day) + paid.amount) / 4,
            *(float(paid.channel == channel) for channel in CHANNELS),
            math.log1p(gap) / 8,
            math.log1p(speed) / 4,
            float(paid.country != paid.home),
            (same + 1) / (len(day) + 1),
            len({other.category for other in day} | {paid.category}) / len(CATEGORIES),
            math.sin(angle),
            math.cos(angle),
            math.log1p(self._count) / 4,
        )

    def _deviation(self, amount: float) -> float:
        """Standard deviations from the mean of the payments before, between -10 and 10."""
        if self._count < 2:
            return 0.0
        spread = math.sqrt(self._squares / (self._count - 1))
        return max(-10.0, min(10.0, (amount - self._mean) / max(spread, 0.01)))

    def _learn(self, paid: Transaction, most: int) -> None:
        insort(self._recent, paid, key=_time)
        self.newest = max(self.newest, paid.time)
        old = bisect_right(self._recent, self.newest - DAY - LATE, key=_time)
        # The last one stays however old it is, for the time since then.
        del self._recent[: min(max(old, len(self._recent) - most), len(self._recent) - 1)]
        self._count += 1
        off = paid.amount - self._mean
        self._mean += off / self._count
        self._squares += off * (paid.amount - self._mean)


def _since(last: Transaction, paid: Transaction) -> tuple[float, float]:
    """Seconds since the payment before, and the kilometres an hour that it would have taken.

    A minute is the least: two payments at once in two countries are fast, not infinitely so.
    """
    gap = paid.time - last.time
    return gap, distance(last.country, paid.country) / max(gap, 60.0) * 3600
