"""Made-up card payments of a realistic shape, with a small share of fraud of three patterns."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

Channel = Literal["chip", "contactless", "online"]
Fraud = Literal["burst", "jump", "travel"]

CHANNELS: tuple[Channel, ...] = ("chip", "contactless", "online")
PATTERNS: tuple[Fraud, ...] = ("burst", "jump", "travel")
COUNTRIES: dict[str, tuple[float, float]] = {
    "DE": (51.2, 10.4),
    "FR": (46.6, 2.2),
    "IT": (42.8, 12.8),
    "ES": (40.4, -3.7),
    "GB": (52.5, -1.5),
    "PL": (52.1, 19.4),
    "US": (39.8, -98.6),
    "BR": (-10.8, -52.9),
    "ZA": (-29.0, 25.1),
    "IN": (22.9, 79.6),
    "JP": (36.6, 138.0),
    "AU": (-25.7, 134.5),
}
"""Where each is, in degrees of latitude and longitude; homes are among the first six."""

HOMES = 6
CATEGORIES: tuple[tuple[int, float], ...] = (
    (5411, 35.0),
    (5812, 28.0),
    (5541, 55.0),
    (4111, 8.0),
    (5651, 70.0),
    (5732, 180.0),
    (4511, 320.0),
    (5912, 22.0),
    (5999, 45.0),
    (5944, 400.0),
)
"""Merchant category codes (ISO 18245), and the median amount paid there."""

USUAL = (0.28, 0.18, 0.1, 0.14, 0.08, 0.03, 0.02, 0.09, 0.07, 0.01)
ELECTRONICS, JEWELLERY, SUNDRY = 5, 9, 8

DAY = 86_400.0
START = 1_767_225_600.0
"""2026-01-01, UTC."""

FRAUD_SHARE = 0.005
"""Of a card's payments, how many are followed by an episode of fraud."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """`amount` in euros; `time` in seconds since 1970; `category` an index into CATEGORIES.

    `home` is the country of the card, `country` that of the payment. `fraud` is what the maker
    knows and no feature may use.
    """

    card: int
    time: float
    amount: float
    category: int
    country: str
    home: str
    channel: Channel
    fraud: Fraud | None = None


class Card:
    """One card's payments without end, in the order of time: `next` gives one after the other.

    A card has a home, a pace of some payments a day, more of them by day than by night, and a
    level of spending. Now and then its owner travels, or somebody else pays with it.
    """

    def __init__(self, number: int, seed: int) -> None:
        self._random = np.random.default_rng([seed, number])
        self._number = number
        self._home = list(COUNTRIES)[self._random.integers(HOMES)]
        self._pace = DAY / self._random.gamma(3.0, 1.0 + 0.5)
        self._level = float(self._random.lognormal(0.0, 0.4))
        self._country = self._home
        self._time = START + self._random.random() * DAY
        self._coming: deque[Transaction] = deque()

    def __next__(self) -> Transaction:
        if not self._coming:
            self._coming.append(self._usual())
            if self._random.random() < FRAUD_SHARE:
                self._coming.extend(self._episode(self._coming[0]))
                self._time = self._coming[-1].time
        return self._coming.popleft()

    def _usual(self) -> Transaction:
        random = self._random
        self._time += float(random.exponential(self._pace))
        hour = self._time % DAY / 3600
        if hour < 6 and random.random() < 0.9:
            self._time += (7 - hour + 2 * random.random()) * 3600
        self._wander()
        category = int(random.choice(len(CATEGORIES), p=USUAL))
        online = random.random() < 0.25
        channel: Channel = "online" if online else CHANNELS[int(random.random() < 0.7)]
        return self._paid(self._time, self._amount(category), category, self._country, channel)

    def _wander(self) -> None:
        """Off to another country, or home again, with the hours that it takes."""
        away = self._country != self._home
        if self._random.random() < (0.15 if away else 0.01):
            options = [name for name in COUNTRIES if name != self._country]
            there = self._home if away else options[self._random.integers(len(options))]
            self._time += 3600 * (3 + distance(self._country, there) / 700)
            self._country = there

    def _amount(self, category: int) -> float:
        spread = float(self._random.lognormal(0.0, 0.5))
        return round(CATEGORIES[category][1] * self._level * spread, 2)

    def _episode(self, last: Transaction) -> list[Transaction]:
        pattern = PATTERNS[self._random.integers(len(PATTERNS))]
        return getattr(self, f"_{pattern}")(last)  # type: ignore[no-any-return]

    def _burst(self, last: Transaction) -> list[Transaction]:
        """Many small payments online within minutes: somebody tries whether the card works."""
        times = last.time + np.cumsum(self._random.exponential(40.0, self._random.integers(8, 20)))
        return [
            self._paid(float(time), round(1 + 9 * self._random.random(), 2), SUNDRY, last.country,
                       "online", "burst")
            for time in times
        ]  # fmt: skip

    def _jump(self, last: Transaction) -> list[Transaction]:
        """One payment of many times the usual."""
        amount = round(self._level * (2_000 + 3_000 * self._random.random()), 2)
        time = last.time + 600 + 7200 * self._random.random()
        return [self._paid(time, amount, JEWELLERY, last.country, "online", "jump")]

    def _travel(self, last: Transaction) -> list[Transaction]:
        """The card is used far away, sooner than its owner could be there."""
        far = [name for name in COUNTRIES if distance(last.country, name) > 4_000]
        country = far[self._random.integers(len(far))]
        time = last.time + 1200 + 2400 * self._random.random()
        amount = self._amount(ELECTRONICS)
        return [self._paid(time, amount, ELECTRONICS, country, "chip", "travel")]

    def _paid(
        self,
        time: float,
        amount: float,
        category: int,
        country: str,
        channel: Channel,
        fraud: Fraud | None = None,
    ) -> Transaction:
        return Transaction(
            self._number, time, amount, category, country, self._home, channel, fraud
        )


def stream(cards: int, seed: int) -> Iterator[Transaction]:
    """The payments of so many cards, without end, in turns: each card's in the order of time."""
    makers = [Card(number, seed) for number in range(cards)]
    while True:
        yield from map(next, makers)


def distance(one: str, other: str) -> float:
    """Kilometres between two countries along a great circle (haversine formula)."""
    if one == other:
        return 0.0
    (lat1, lon1), (lat2, lon2) = (
        (math.radians(lat), math.radians(lon)) for lat, lon in (COUNTRIES[one], COUNTRIES[other])
    )
    across = math.sin((lat2 - lat1) / 2) ** 2
    across += math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    return 2 * 6371.0 * math.asin(math.sqrt(across))
