from __future__ import annotations

from pathlib import Path

import pytest

from ds_serve.catalogue.cache import default_root


@pytest.fixture(autouse=True)
def _no_cache_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DS_SERVE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/someone")


@pytest.mark.parametrize(
    ("variables", "root"),
    [
        ({}, "/home/someone/.cache/ds-serve"),
        ({"XDG_CACHE_HOME": "/var/xdg"}, "/var/xdg/ds-serve"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/someone/.cache/ds-serve"),
        ({"DS_SERVE_CACHE": "/models", "XDG_CACHE_HOME": "/var/xdg"}, "/models"),
        ({"DS_SERVE_CACHE": "~/models"}, "/home/someone/models"),
    ],
)
def test_the_cache_is_where_the_environment_says(
    variables: dict[str, str], root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert default_root() == Path(root)
