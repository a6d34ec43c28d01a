"""deploy/ray/: pods, Service and NetworkPolicy by Kubernetes' schemas, arguments by our parser.

RayCluster itself has no schema in a package registry: its fields are held to KubeRay's where the
environment names its CustomResourceDefinition.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")
jsonschema_rs = pytest.importorskip("jsonschema_rs", reason="jsonschema_rs is not installed")
kubernetes_schemas = pytest.importorskip("kubernetes_schemas")

from ds_serve import cli  # noqa: E402
from ds_serve.settings import Settings  # noqa: E402

CRD = "RAYCLUSTER_CRD"
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


def strict(schema: Any) -> Any:
    """A structural schema of Kubernetes in which fields that it does not name are mistakes."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if made.pop("x-kubernetes-int-or-string", False):
        made.pop("type", None)
    if "properties" in made and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


@pytest.mark.skipif(CRD not in os.environ, reason=f"{CRD} names no schema of KubeRay's")
def test_the_cluster_fits_kuberay_s_schema(objects: list[dict[str, Any]]) -> None:
    definition = yaml.safe_load(Path(os.environ[CRD]).read_text())
    (version,) = (each for each in definition["spec"]["versions"] if each["storage"])
    assert objects[0]["apiVersion"] == f"{definition['spec']['group']}/{version['name']}"
    spec = strict(version["schema"]["openAPIV3Schema"]["properties"]["spec"])
    validator = jsonschema_rs.Draft4Validator(spec)
    assert [str(each) for each in validator.iter_errors(objects[0]["spec"])] == []
    assert not validator.is_valid(objects[0]["spec"] | {"workerGroups": []}), "it is strict"


def test_ds_serve_takes_its_arguments(objects: list[dict[str, Any]]) -> None:
    _, server = pods(objects[0])[0]["spec"]["containers"]
    given = vars(cli.parser().parse_args(server["args"]))
    Settings(cluster=given["cluster"], cluster_replicas=given["cluster_replicas"]).check()
    assert given["model"] == ["fraud=/models/fraud.onnx"]


def test_models_are_where_all_pods_see_them(objects: list[dict[str, Any]]) -> None:
    for template in pods(objects[0]):
        for container in template["spec"]["containers"]:
            assert "/models" in [mount["mountPath"] for mount in container["volumeMounts"]]
