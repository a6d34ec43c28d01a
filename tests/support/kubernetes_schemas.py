"""Objects of Kubernetes held against the schemas of its API.

Kubernetes' own come from the package kubernetes-validate, in their strict form, which takes no
unknown field. Models of KEDA's and Prometheus' resources are on npm, but let unknown fields pass;
of LeaderWorkerSet there is none. So those fields that the chart uses are here, as their references
name them:

- ScaledObject: keda.sh/docs/2.18/reference/scaledobject-spec and scalers/prometheus
- ServiceMonitor, PrometheusRule: prometheus-operator.dev/docs/api-reference/api
- LeaderWorkerSet: lws.sigs.k8s.io/docs/reference/leaderworkerset.v1
"""

from __future__ import annotations

import functools
import json
import subprocess
from typing import Any

import deploy_tools
import jsonschema_rs

Json = dict[str, Any]

TEXT: Json = {"type": "string", "minLength": 1}
WHOLE: Json = {"type": "integer", "minimum": 0}
LABELS: Json = {"type": "object", "additionalProperties": {"type": "string"}}


def kind(name: str) -> Json:
    return {"$ref": f"#/$defs/io.k8s.{name}"}


def fields(*needed: str, **known: Json) -> Json:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(needed),
        "properties": known,
    }


def listed(item: Json) -> Json:
    return {"type": "array", "minItems": 1, "items": item}


POD = kind("api.core.v1.PodTemplateSpec")
BEHAVIOR = kind("api.autoscaling.v2.HorizontalPodAutoscalerBehavior")

SCALED_OBJECT = fields(
    "scaleTargetRef",
    "triggers",
    scaleTargetRef=fields("name", apiVersion=TEXT, kind=TEXT, name=TEXT),
    pollingInterval=WHOLE,
    minReplicaCount=WHOLE,
    maxReplicaCount=WHOLE,
    fallback=fields(
        "failureThreshold",
        "replicas",
        failureThreshold=WHOLE,
        replicas=WHOLE,
        behavior={
            "enum": [
                "static",
                "currentReplicas",
                "currentReplicasIfHigher",
                "currentReplicasIfLower",
            ]
        },
    ),
    advanced=fields(horizontalPodAutoscalerConfig=fields(behavior=BEHAVIOR)),
    triggers=listed(
        fields(
            "type",
            "metadata",
            type={"const": "prometheus"},
            metricType={"enum": ["AverageValue", "Value"]},
            metadata=fields(
                "serverAddress",
                "query",
                "threshold",
                serverAddress=TEXT,
                query=TEXT,
                threshold={"type": "string", "pattern": r"^[0-9.]+$"},
                ignoreNullValues={"enum": ["true", "false"]},
            ),
        )
    ),
)
SERVICE_MONITOR = fields(
    "selector",
    "endpoints",
    jobLabel=TEXT,
    selector=kind("apimachinery.pkg.apis.meta.v1.LabelSelector"),
    endpoints=listed(
        fields(port=TEXT, path=TEXT, interval={"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"})
    ),
)
RULE = fields(
    "alert",
    "expr",
    alert=TEXT,
    expr=TEXT,
    labels=LABELS,
    annotations=LABELS,
    **{"for": {"type": "string", "pattern": "^[0-9]+(s|m|h)$"}},
)
PROMETHEUS_RULE = fields(
    "groups", groups=listed(fields("name", "rules", name=TEXT, rules=listed(RULE)))
)
LEADER_WORKER_SET = fields(
    "leaderWorkerTemplate",
    replicas=WHOLE,
    rolloutStrategy=fields(
        "type",
        type={"const": "RollingUpdate"},
        rollingUpdateConfiguration=fields(maxUnavailable=WHOLE, maxSurge=WHOLE),
    ),
    leaderWorkerTemplate=fields(
        "workerTemplate",
        size=WHOLE,
        restartPolicy={"enum": ["RecreateGroupOnPodRestart", "None"]},
        leaderTemplate=POD,
        workerTemplate=POD,
    ),
)
CUSTOM = {
    ("keda.sh/v1alpha1", "ScaledObject"): SCALED_OBJECT,
    ("monitoring.coreos.com/v1", "ServiceMonitor"): SERVICE_MONITOR,
    ("monitoring.coreos.com/v1", "PrometheusRule"): PROMETHEUS_RULE,
    ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet"): LEADER_WORKER_SET,
}


VALIDATE = """
import { readFileSync } from "node:fs";
for (const each of JSON.parse(readFileSync(0, "utf8"))) {
  const [group, version] = each.apiVersion.split("/");
  const owner = group === "keda.sh" ? "keda" : "prometheus-operator";
  const models = await import(`@kubernetes-models/${owner}/${group}/${version}/${each.kind}`);
  new models[each.kind](each).validate();
  console.log(each.kind);
}
"""


def held_against_models(objects: list[Json]) -> subprocess.CompletedProcess[str]:
    """Types and choices of ScaledObjects, ServiceMonitors and PrometheusRules, by their own API.
    Each that is right is printed.
    """
    command = ["node", "--input-type=module", "--eval", VALIDATE]
    return subprocess.run(
        command, input=json.dumps(objects), cwd=deploy_tools.custom_resources(),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def mistakes(each: Json) -> list[str]:
    """What is wrong with an object, and where."""
    found = _validator(each["apiVersion"], each["kind"]).iter_errors(each)
    return [f"{'.'.join(map(str, error.instance_path))}: {error.message}" for error in found]


@functools.cache
def _validator(version: str, name: str) -> Any:
    known = _definitions()
    schema = _custom(version, name) if (version, name) in CUSTOM else _own(version, name)
    return jsonschema_rs.Draft202012Validator(schema | {"$defs": known})


def _custom(version: str, name: str) -> Json:
    return fields(
        "apiVersion",
        "kind",
        "metadata",
        "spec",
        apiVersion={"const": version},
        kind={"const": name},
        metadata=kind("apimachinery.pkg.apis.meta.v1.ObjectMeta"),
        spec=CUSTOM[version, name],
    )


def _own(version: str, name: str) -> Json:
    group, _, number = version.rpartition("/")
    (found,) = (
        path
        for path, schema in _definitions().items()
        for about in schema.get("x-kubernetes-group-version-kind", [])
        if (about.get("group", ""), about["version"], about["kind"]) == (group, number, name)
    )
    return {"allOf": [{"$ref": f"#/$defs/{found}"}], "required": ["metadata"]}


@functools.cache
def _definitions() -> Json:
    known: Json = json.loads(deploy_tools.kubernetes_schemas().read_text())["$defs"]
    return known
