"""Which tests run together where several processes share them out (`pytest -n 2`), and how."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadFileScheduling

# How long an example takes says more about what else the machine does than about the example.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

TOGETHER = ("tests/e2e/text/", "tests/server/text/", "tests/deploy/test_dashboards_scrape.py")
"""All of these run in one process, since a chat model takes every core; others go by the module."""

FIRST = (*TOGETHER, "tests/e2e/", "tests/loadtests/", "tests/profiler/")
"""What takes longest starts first, so that no process is left alone with it in the end."""


class Groups(LoadFileScheduling):
    """Gives each process one group of tests after the other."""

    def _split_scope(self, nodeid: str) -> str:
        return TOGETHER[0] if nodeid.startswith(TOGETHER) else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Groups:
    config.option.loadscopereorder = False
    return Groups(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    places = [at for at, folder in enumerate(FIRST) if item.nodeid.startswith(folder)]
    return min(places, default=len(FIRST))
