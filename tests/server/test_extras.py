"""Optional packages that are not there are told, also below a package that is."""

from __future__ import annotations

import pytest

from ds_serve.extras import installed


@pytest.mark.parametrize("module", ["json", "opentelemetry.sdk", "ds_serve.extras"])
def test_what_is_there(module: str) -> None:
    assert installed(module)


@pytest.mark.parametrize(
    "module", ["no_such_package", "no_such_package.sdk", "opentelemetry.nothing.deeper"]
)
def test_what_is_not_there(module: str) -> None:
    assert not installed(module)
