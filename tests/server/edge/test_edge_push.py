"""Metrics that wait on disk, and how they are told."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from ds_engines.errors import ConfigError
from ds_serve.edge import pushing
from ds_serve.edge.otlp_metrics import described


class Link:
    """Takes snapshots while it is up."""

    def __init__(self) -> None:
        self.up = True
        self.taken: list[bytes] = []

    def send(self, snapshot: bytes) -> str:
        if not self.up:
            return "no route"
        self.taken.append(snapshot)
        return ""


def test_what_cannot_be_sent_waits_and_goes_in_order(tmp_path: Path) -> None:
    link, kept = Link(), pushing.Kept(tmp_path / "new" / "folder")
    link.up = False
    for number in range(3):
        kept.add(b"%d" % number)
        assert kept.send(link) == "no route"
    assert len(kept) == 3
    link.up = True
    again = pushing.Kept(tmp_path / "new" / "folder")
    assert again.send(link) == ""
    assert link.taken == [b"0", b"1", b"2"]
    assert len(again) == 0


def test_too_many_lose_detail_and_neither_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "MOST", 20)
    link, kept = Link(), pushing.Kept(tmp_path)
    for number in range(100):
        kept.add(b"%d" % number)
        assert len(kept) <= 20
    kept.send(link)
    numbers = [int(each) for each in link.taken]
    assert numbers == sorted(numbers)
    assert numbers[-10:] == list(range(90, 100)), "the newest are all there"


def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file") as raised:
        pushing.Kept(tmp_path / "file" / "x").add(b"")
    assert raised.value.errno == errno.ENOTDIR


@pytest.mark.parametrize("endpoint", ["collector:4318", "http://", "ftp://x/v1/metrics"])
def test_an_address_that_is_none(endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"it must be an address, such as http://127\.0\.0\.1"):
        pushing.check(endpoint)


def test_counters_levels_and_histograms_as_opentelemetry_has_them() -> None:
    registry = CollectorRegistry()
    Counter("asked", "How often.", ("model",), registry=registry).labels("m").inc(3)
    level = Gauge("level", "Now.", registry=registry)
    level.set(0.5)
    Gauge("none", "Not known.", registry=registry).set(float("nan"))
    took = Histogram("took", "Seconds.", buckets=(1, 2), registry=registry)
    for value in (0.5, 0.6, 1.5, 7):
        took.observe(value)
    made = {each.name: each for each in described(registry.collect(), 10, 20)}
    (point,) = made["asked"].sum.data_points
    assert made["asked"].sum.is_monotonic
    assert (point.start_time_unix_nano, point.time_unix_nano, point.as_double) == (10, 20, 3)
    assert [(each.key, each.value.string_value) for each in point.attributes] == [("model", "m")]
    assert made["level"].gauge.data_points[0].as_double == 0.5
    assert not made["none"].gauge.data_points
    (spread,) = made["took"].histogram.data_points
    assert list(spread.explicit_bounds) == [1, 2]
    assert list(spread.bucket_counts) == [2, 1, 1]
    assert spread.count == 4
    assert spread.sum == pytest.approx(9.6)
