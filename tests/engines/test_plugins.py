"""Engines of other packages: the example in the docs, as installed, behind the real server."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest
from serving import Server

from ds_engines import plugins
from ds_engines.base import EngineOptions, load
from ds_engines.errors import ConfigError, LoadError
from ds_engines.spec import ModelSpec
from ds_serve.models import resolve

EXAMPLE = Path(__file__).parents[2] / "docs/examples/engine"


def installed(folder: Path, points: dict[str, dict[str, str]], name: str = "linear_engine") -> None:
    """As pip leaves it: the distribution's folder with its entry points."""
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = []
    for group, named in points.items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in named.items())]
    (about / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path of this process and of servers that it starts."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    forget()
    yield folder
    forget()


def forget() -> None:
    plugins.engines.cache_clear()
    plugins.formats.cache_clear()


@pytest.fixture
def example(site: Path) -> None:
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    installed(site, project["entry-points"])
    shutil.copy(EXAMPLE / "linear_engine.py", site)


def linear(file: Path) -> Path:
    weights = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.savez(file, weights=weights, bias=np.ones(2, np.float32))
    return file


@pytest.mark.usefixtures("example")
def test_a_file_of_its_format_is_served(tmp_path: Path) -> None:
    model = linear(tmp_path / "prices.npz")
    with Server("--model", model) as server:
        rows = [[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]]
        body = {"inputs": [{"name": "x", "shape": [2, 3], "datatype": "FP32", "data": rows}]}
        answer = httpx2.post(f"{server.http}/v2/models/prices/infer", json=body).json()
        assert answer["outputs"][0]["data"] == [9.0, 12.0, 3.0, 4.0]
        assert httpx2.get(f"{server.http}/v2/models/prices").json()["platform"] == "linear"


@pytest.mark.usefixtures("example")
def test_its_errors_are_the_servers(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"PK")
    source = resolve(str(tmp_path / "bad.npz"))
    assert (source.engine, source.task) == ("linear", "tensor")
    with pytest.raises(LoadError, match="not a linear model"):
        load(ModelSpec("bad", source.engine, source.artifact), EngineOptions())
    with pytest.raises(
        ConfigError, match=r"no engine is called 'other'; there are: linear, .*onnx"
    ):
        load(ModelSpec("bad", "other", source.artifact), EngineOptions())


def test_two_packages_with_one_name_are_refused(site: Path) -> None:
    installed(site, {plugins.ENGINES: {"linear": "one:Engine"}}, "one")
    installed(site, {plugins.ENGINES: {"linear": "two:Engine"}}, "two")
    with pytest.raises(ConfigError, match=r"two packages bring 'linear'.*(one|two):Engine and"):
        plugins.engines()


def test_a_format_needs_an_engine(site: Path) -> None:
    installed(site, {plugins.FORMATS: {"npz": "one:Engine"}})
    with pytest.raises(ConfigError, match=r"'npz'.*one:Engine, which no entry point"):
        plugins.formats()
