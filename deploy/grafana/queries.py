"""Queries of Prometheus, as the panels need them: each with what its lines are called."""

from __future__ import annotations

from typing import NamedTuple

SERVERS = 'job=~"$job",instance=~"$instance"'
MODEL = f'{SERVERS},model=~"$model"'
TEXT = f'{SERVERS},model_name=~"$model"'


class Query(NamedTuple):
    """`legend` has `{{label}}` where a label's value goes."""

    text: str
    legend: str = ""

    def called(self, more: str) -> Query:
        """With something after the labels."""
        return Query(self.text, f"{self.legend} {more}".strip())

    def over(self, other: Query, factor: str = "") -> Query:
        return Query(f"{self.text} / {other.text}{factor}", self.legend)


def now(metric: str, where: str, by: str = "", how: str = "sum") -> Query:
    """Its value; without `by` of each series, which is then called by its server."""
    series = f"{metric}{{{where}}}"
    return (
        Query(f"{how} by ({by}) ({series})", _legend(by)) if by else Query(series, "{{instance}}")
    )


def rate(metric: str, where: str, by: str = "") -> Query:
    """How much it rises in a second."""
    grouped = f"sum by ({by}) " if by else "sum"
    return Query(f"{grouped}(rate({metric}{{{where}}}[$__rate_interval]))", _legend(by))


def quantiles(metric: str, where: str, by: str, *parts: float) -> list[Query]:
    """One for each part of a histogram; 0.5 is the median."""
    inner = rate(f"{metric}_bucket", where, f"{by}, le").text
    return [
        Query(f"histogram_quantile({part}, {inner})", f"{_legend(by)} p{part * 100:g}")
        for part in parts
    ]


def or_none(query: Query) -> Query:
    """0 where there is no such series."""
    return Query(f"({query.text} or vector(0))", query.legend)


def _legend(by: str) -> str:
    return " ".join(f"{{{{{label}}}}}" for label in by.split(", ")) if by else ""
