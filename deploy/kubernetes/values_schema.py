"""Writes ds-serve/values.schema.json: the values of the chart, with ds-serve's own flags.

`python deploy/kubernetes/values_schema.py` writes the file, `--check` tells whether it is as it
would be written.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ds_serve.settings import Settings, flag

FILE = Path(__file__).parent / "ds-serve" / "values.schema.json"

Schema = dict[str, Any]

OWNED = {
    "host", "http_port", "grpc_port", "metrics_port", "api_keys", "tls_certificate", "tls_key",
    "tls_client_ca", "vllm_args",
}  # fmt: skip
"""Settings that the chart makes from other values, or that its probes cannot pass."""

CHOICES = {
    "model_control_mode": ["none", "poll", "explicit"],
    "replica_routing": ["prefix", "random"],
    "grpc_server": ["native", "grpcio", "pyvoy"],
    "log_format": ["text", "json", "ISO8601"],
    "log_level": ["debug", "info", "warning", "error"],
}

TEXT: Schema = {"type": "string"}
NAMED: Schema = {"type": "string", "minLength": 1}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
POSITIVE: Schema = {"type": "integer", "minimum": 1}
PORT: Schema = {"type": "integer", "minimum": 1024, "maximum": 65535}
QUANTITY: Schema = {
    "type": "string",
    "pattern": "^[0-9]+(\\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?$",
}
CLAIM: Schema = {"type": "string", "pattern": "^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$"}
LABELS: Schema = {"type": "object", "additionalProperties": TEXT}
NAMES: Schema = {"type": "array", "items": NAMED}
WORDS: Schema = {"type": "array", "items": {"type": ["string", "number", "boolean"]}}
ANY_LIST: Schema = {"type": "array", "items": {"type": "object"}}
ANY: Schema = {"type": "object"}
RESOURCES: Schema = {
    "type": "object",
    "additionalProperties": False,
    "required": ["requests", "limits"],
    "properties": {
        kind: {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {"anyOf": [QUANTITY, POSITIVE]},
        }
        for kind in ("requests", "limits")
    },
}


def one_of(*values: str) -> Schema:
    return {"enum": list(values)}


def whole(**properties: Schema) -> Schema:
    """An object with these fields and no others."""
    return {"type": "object", "additionalProperties": False, "properties": properties}


def flags() -> Schema:
    """ds-serve's flags with the types that their settings have."""
    defaults = Settings()
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            flag(name).removeprefix("--"): _of(name, getattr(defaults, name))
            for name in Settings.__struct_fields__
            if name not in OWNED
        },
    }


def _of(name: str, default: object) -> Schema:
    if name in CHOICES:
        return one_of(*CHOICES[name])
    if isinstance(default, bool):
        return FLAG
    if isinstance(default, tuple):
        return {"type": "array", "items": NAMED}
    if isinstance(default, int):
        return {"type": "integer", "minimum": -1 if default < 0 else 0}
    if isinstance(default, float):
        return {"type": "number", "minimum": 0}
    return TEXT


def schema() -> Schema:
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the ds-serve chart",
        **whole(
            **_pods(),
            **_server(),
            **_around(),
            multiNode=_multi_node(),
            quantize=_quantize(),
            **{"global": ANY},
        ),
    }


def _pods() -> dict[str, Schema]:
    return {
        "image": whole(
            repository=NAMED,
            variant=NAMED,
            tag=TEXT,
            digest={"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
            pullPolicy=one_of("Always", "IfNotPresent", "Never"),
        ),
        "imagePullSecrets": ANY_LIST,
        "nameOverride": CLAIM,
        "podLabels": LABELS,
        "podAnnotations": LABELS,
        "replicas": COUNT,
        "env": {"type": "array", "items": {"type": "object", "required": ["name"]}},
        "tmpSize": QUANTITY,
        "sharedMemory": QUANTITY,
        "resources": RESOURCES,
        "podSecurityContext": {
            "type": "object",
            "required": ["runAsNonRoot"],
            "properties": {"runAsNonRoot": {"const": True}, "runAsUser": POSITIVE},
        },
        "serviceAccount": whole(create=FLAG, name=CLAIM, annotations=LABELS),
        "runtimeClassName": TEXT,
        "priorityClassName": TEXT,
        "nodeSelector": LABELS,
        "tolerations": ANY_LIST,
        "affinity": ANY,
        "topologySpread": {"type": "array", "items": NAMED},
    }


def _server() -> dict[str, Schema]:
    return {
        "models": NAMES,
        "flags": flags(),
        "vllmArgs": WORDS,
        "files": {
            "type": "object",
            "additionalProperties": False,
            "patternProperties": {"^[-._a-zA-Z0-9]+$": TEXT},
        },
        "apiKeys": whole(content=TEXT, secret=CLAIM),
        "tls": whole(secret=CLAIM),
        "modelVolume": whole(claim=CLAIM),
        "pull": whole(sources=NAMES, include=NAMES, exclude=NAMES, dockerConfig=CLAIM),
        "cache": whole(size=QUANTITY, claim=CLAIM),
        "ports": whole(http=PORT, grpc=PORT, metrics=PORT),
        "probes": whole(startupSeconds=POSITIVE, readySeconds=POSITIVE),
        "drain": whole(preStopSeconds=POSITIVE, marginSeconds=POSITIVE),
        "spot": whole(cloud=one_of("", "eks", "karpenter", "gke", "aks")),
    }


def _around() -> dict[str, Schema]:
    return {
        "service": whole(
            type=one_of("ClusterIP", "NodePort", "LoadBalancer"),
            annotations=LABELS,
            grpcAppProtocol=NAMED,
        ),
        "podDisruptionBudget": whole(
            enabled=FLAG,
            maxUnavailable={"anyOf": [POSITIVE, {"type": "string", "pattern": "^[0-9]+%$"}]},
        ),
        "autoscaling": whole(
            kind=one_of("none", "hpa", "keda"),
            # Of no server there is no ds_load, so nothing would ever start one again.
            min=POSITIVE,
            max=POSITIVE,
            load={"type": "number", "exclusiveMinimum": 0, "maximum": 10},
            scaleDownSeconds={"type": "integer", "minimum": 0, "maximum": 3600},
            prometheus={"type": "string", "pattern": "^https?://"},
        ),
        "networkPolicy": whole(
            enabled=FLAG, clients=ANY_LIST, monitoring=ANY_LIST, internet=FLAG, egress=ANY_LIST
        ),
        "serviceMonitor": whole(
            enabled=FLAG, interval={"type": "string", "pattern": "^[0-9]+(s|m)$"}, labels=LABELS
        ),
        "prometheusRule": whole(enabled=FLAG, labels=LABELS, runbooks=NAMED),
        "dashboards": whole(enabled=FLAG, labels=LABELS),
    }


def _multi_node() -> Schema:
    made = whole(
        enabled=FLAG,
        model=TEXT,
        name=TEXT,
        nodes={"type": "integer", "minimum": 2},
        tensorParallel=POSITIVE,
        pipelineParallel=POSITIVE,
        port=PORT,
        command={"type": "array", "items": NAMED, "minItems": 1},
        args=WORDS,
    )
    return made | _where_enabled(model=NAMED)


def _quantize() -> Schema:
    made = whole(
        enabled=FLAG,
        model=TEXT,
        recipe=NAMED,
        calibration=TEXT,
        evaluation=TEXT,
        output=TEXT,
        args=WORDS,
        claim=CLAIM,
        image=TEXT,
        deadlineSeconds=POSITIVE,
        resources=RESOURCES,
    )
    return made | _where_enabled(model=NAMED, evaluation=NAMED, output=NAMED, claim=NAMED)


def _where_enabled(**needed: Schema) -> Schema:
    return {
        "if": {"properties": {"enabled": {"const": True}}, "required": ["enabled"]},
        "then": {"properties": needed, "required": list(needed)},
    }


def text() -> str:
    return json.dumps(schema(), indent=1) + "\n"


def main() -> int:
    if "--check" not in sys.argv:
        FILE.write_text(text())
        return 0
    if FILE.read_text() == text():
        return 0
    print(f"{FILE} is out of date: python deploy/kubernetes/values_schema.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
