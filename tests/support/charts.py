"""The Helm chart of deploy/, rendered."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deploy_tools
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy" / "kubernetes"
CHART = DEPLOY / "ds-serve"
KUBERNETES = "1.37"
SETS = sorted(path.stem for path in (DEPLOY / "values").glob("*.yaml"))

Json = dict[str, Any]


def helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [deploy_tools.helm(), "template", "demo", CHART, "--namespace", "serving"]
    command += ["--kube-version", KUBERNETES, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@functools.cache
def rendered(values: str, *sets: str) -> list[Json]:
    """The objects for a file of deploy/kubernetes/values with more values set."""
    file = DEPLOY / "values" / f"{values}.yaml"
    done = helm("--values", file, *(word for each in sets for word in ("--set-json", each)))
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def one(objects: list[Json], kind: str, name: str = "") -> Json:
    (found,) = (
        each for each in objects if each["kind"] == kind and name in ("", each["metadata"]["name"])
    )
    return found


def templates(objects: list[Json]) -> Iterator[Json]:
    """All pod templates."""
    for each in objects:
        spec = each.get("spec") or {}
        group = spec.get("leaderWorkerTemplate", {})
        for place in (spec, group):
            for name in ("template", "leaderTemplate", "workerTemplate"):
                if name in place:
                    yield place[name]
