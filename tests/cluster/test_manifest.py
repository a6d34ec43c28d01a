"""deploy/ray/: pods, Service and NetworkPolicy by Kubernetes' schemas, arguments by our parser.

RayCluster itself has no schema in a package registry: its fields are not checked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")
kubernetes_schemas = pytest.importorskip(
    "kubernetes_schemas", reason="jsonschema_rs is not installed", exc_type=ImportError
)

from ds_serve import cli  # noqa: E402
from ds_serve.settings import Settings  # noqa: E402

FILE = Path(__file__).parents[2] / "deploy" / "ray" / "raycluster.yaml"


@pytest.fixture(scope="module")
def objects() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(FILE.read_text()))


def pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    return [group["template"] for group in groups]


def test_objects_fit_their_schemas(objects: list[dict[str, Any]]) -> None:
    cluster, *others = objects
    assert cluster["kind"] == "RayCluster"
    for template in pods(cluster):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **template}
        assert kubernetes_schemas.mistakes(pod) == []
    for each in others:
        assert kubernetes_schemas.mistakes(each) == []


def test_ds_serve_takes_its_arguments(objects: list[dict[str, Any]]) -> None:
    _, server = pods(objects[0])[0]["spec"]["containers"]
    given = vars(cli.parser().parse_args(server["args"]))
    Settings(cluster=given["cluster"], cluster_replicas=given["cluster_replicas"]).check()
    assert given["model"] == ["fraud=/models/fraud.onnx"]


def test_models_are_where_all_pods_see_them(objects: list[dict[str, Any]]) -> None:
    for template in pods(objects[0]):
        for container in template["spec"]["containers"]:
            assert "/models" in [mount["mountPath"] for mount in container["volumeMounts"]]
