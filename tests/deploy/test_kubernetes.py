"""The Helm chart, rendered by Helm for the usual values and held against Kubernetes' schemas."""

from __future__ import annotations

import copy
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import deploy_tools
import pytest
import yaml
from charts import CHART, DEPLOY, SETS, Json, helm, one, rendered, templates
from kubernetes_schemas import held_against_models, mistakes

from ds_quantize import cli as quantize_cli
from ds_serve import __version__, cli
from ds_serve.catalogue import cli as models_cli
from ds_serve.settings import Settings

ROOT = Path(__file__).parents[2]

every_set = pytest.mark.parametrize("values", SETS)


def server(objects: list[Json]) -> Json:
    """The pod template that answers requests."""
    (found,) = (
        each
        for each in templates(objects)
        if each["metadata"]["labels"]["app.kubernetes.io/component"] == "server"
    )
    return found


def container(template: Json) -> Json:
    (found,) = template["spec"]["containers"]
    return found


def bounds(resources: Json) -> Iterator[str]:
    yield from (f"{kind}.{name}" for kind in resources for name in resources[kind])


@every_set
def test_objects_are_as_kubernetes_wants_them(values: str) -> None:
    wrong = {each["kind"]: mistakes(each) for each in rendered(values)}
    assert {kind: said for kind, said in wrong.items() if said} == {}


def test_a_wrong_object_is_noticed() -> None:
    deployment = copy.deepcopy(one(rendered("cpu"), "Deployment"))
    container(deployment["spec"]["template"])["readynessProbe"] = {}
    assert "readynessProbe" in " ".join(mistakes(deployment))
    scaled = copy.deepcopy(one(rendered("production"), "ScaledObject"))
    scaled["spec"]["maxReplicas"] = scaled["spec"].pop("maxReplicaCount")
    assert "maxReplicas" in " ".join(mistakes(scaled))
    group = copy.deepcopy(one(rendered("multi-node"), "LeaderWorkerSet"))
    worker = group["spec"]["leaderWorkerTemplate"]["workerTemplate"]
    worker["spec"]["volumes"][0]["name"] = 3
    assert mistakes(group)


def server_words(objects: list[Json]) -> list[str]:
    """What ds-serve is told; `ds-models serve`, where that starts it, is told more before."""
    each = container(server(objects))
    words: list[str] = each["args"]
    return words[words.index("--") + 1 :] if "command" in each else words


@pytest.mark.slow
def test_custom_resources_fit_their_own_models() -> None:
    known = ("keda.sh/v1alpha1", "monitoring.coreos.com/v1")
    objects = [each for each in rendered("production") if each["apiVersion"] in known]
    done = held_against_models(objects)
    assert done.returncode == 0, done.stderr
    kinds = {"ScaledObject", "ServiceMonitor", "PrometheusRule"}
    assert set(done.stdout.split()) == kinds
    wrong = copy.deepcopy(one(objects, "ScaledObject"))
    wrong["spec"]["fallback"]["behavior"] = "none"
    assert "behavior" in held_against_models([wrong]).stderr


@every_set
def test_pods_are_locked_down(values: str) -> None:
    for template in templates(rendered(values)):
        pod = template["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for each in (*pod["containers"], *pod.get("initContainers", [])):
            security = each["securityContext"]
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["runAsNonRoot"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
            wanted = {"requests.cpu", "requests.memory", "limits.memory"}
            assert wanted <= set(bounds(each["resources"]))


@every_set
def test_mounts_have_volumes_and_writable_ones_are_scratch(values: str) -> None:
    for template in templates(rendered(values)):
        pod = template["spec"]
        volumes = {each["name"]: each for each in pod["volumes"]}
        quantizes = template["metadata"]["labels"]["app.kubernetes.io/component"] == "quantize"
        for each in (*pod["containers"], *pod.get("initContainers", [])):
            mounts = {mount["name"]: mount for mount in each["volumeMounts"]}
            assert set(mounts) <= set(volumes)
            assert {"tmp", "cache"} <= set(mounts)
            if "models" in mounts and not quantizes:
                assert mounts["models"]["readOnly"] is True


@every_set
def test_services_and_budgets_find_the_servers(values: str) -> None:
    objects = rendered(values)
    labels = server(objects)["metadata"]["labels"].items()
    ports = {port["name"] for port in container(server(objects))["ports"]}
    for each in objects:
        if each["kind"] == "Service":
            assert each["spec"]["selector"].items() <= labels
            assert {port["targetPort"] for port in each["spec"]["ports"]} <= ports
            assert all(port["appProtocol"] for port in each["spec"]["ports"])
        if each["kind"] in ("PodDisruptionBudget", "Deployment"):
            assert each["spec"]["selector"]["matchLabels"].items() <= labels
        if each["kind"] == "NetworkPolicy":
            assert each["spec"]["podSelector"]["matchLabels"].items() <= labels
    for each in templates(objects):
        component = each["metadata"]["labels"]["app.kubernetes.io/component"]
        assert (component == "server") == (each is server(objects))
    names = [(each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(names) == len(set(names))


@every_set
def test_the_arguments_are_ds_serve_s(values: str) -> None:
    words = server_words(rendered(values))
    own = words.index("--") if "--" in words else len(words)
    given = vars(cli.parser().parse_args(words[:own]))
    given = {name: tuple(it) if isinstance(it, list) else it for name, it in given.items()}
    models = given.pop("model")
    del given["list_models"]
    # Files that only the pod has.
    given |= dict.fromkeys(("api_keys", "tls_certificate", "tls_key"), "")
    Settings(**given, vllm_args=tuple(words[own + 1 :])).check()
    assert models or given["model_repository"] or "command" in container(server(rendered(values)))


@every_set
def test_a_pod_has_the_time_that_its_end_takes(values: str) -> None:
    template = server(rendered(values))
    words = server_words(rendered(values))
    (drain,) = (word.partition("=")[2] for word in words if word.startswith("--drain-timeout="))
    hook = container(template)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert hook > 0
    assert template["spec"]["terminationGracePeriodSeconds"] >= hook + float(drain) + 5


def test_the_spot_pod_ends_within_the_notice() -> None:
    pod = server(rendered("spot"))["spec"]
    assert pod["terminationGracePeriodSeconds"] <= 15
    assert pod["nodeSelector"] == {"cloud.google.com/gke-spot": "true"}
    azure = server(rendered("spot", 'spot.cloud="aks"'))["spec"]
    (toleration,) = azure["tolerations"]
    assert toleration["key"] in azure["nodeSelector"]


REFUSED = [
    ("flags.drain-timeuot=5", "drain-timeuot"),
    ('flags.drain-timeout="soon"', "drain-timeout"),
    ("flags.max-batch-size=-1", "max-batch-size"),
    ('flags.host="::"', "host"),
    ('flags.log-level="loud"', "log-level"),
    ("replica=3", "replica"),
    ("models=[3]", "models"),
    ('pull.source="magika"', "source"),
    ("ports.http=80", "http"),
    ('image.digest="sha256:abc"', "digest"),
    ("resources.limits=null", "limits"),
    ("podSecurityContext.runAsNonRoot=false", "runAsNonRoot"),
    ("podSecurityContext.runAsUser=0", "runAsUser"),
    ('autoscaling.kind="vpa"', "kind"),
    ("autoscaling.min=0", "min"),
    ('spot.cloud="azure"', "cloud"),
    ("multiNode.enabled=true", "model"),
    ("quantize.enabled=true", "claim"),
    ('quantize={"enabled":true,"model":"m","output":"o","claim":"c"}', "evaluation"),
    ("drain.preStopSeconds=0", "preStopSeconds"),
]
TOGETHER = [
    (('spot.cloud="gke"',), "spot.cloud gke gives a pod 15 seconds"),
    ((), "there is nothing to serve"),
    (('models=["m"]', "autoscaling.min=11"), "autoscaling.min 11 is above autoscaling.max 10"),
    (('models=["m"]', 'apiKeys={"content":"x","secret":"y"}'), "apiKeys.content"),
]


@pytest.mark.parametrize(("value", "named"), REFUSED)
def test_a_wrong_value_is_refused_by_name(value: str, named: str) -> None:
    done = helm("--set-json", value)
    assert done.returncode != 0
    assert "schema" in done.stderr
    assert named in done.stderr


@pytest.mark.parametrize(("values", "said"), TOGETHER)
def test_values_that_do_not_fit_together_are_refused(values: tuple[str, ...], said: str) -> None:
    done = helm(*(word for each in values for word in ("--set-json", each)))
    assert done.returncode != 0, "it renders"
    assert said in done.stderr


def test_the_chart_passes_helm_s_own_checks() -> None:
    command = [deploy_tools.helm(), "lint", "--strict", CHART]
    command += ["--values", DEPLOY / "values" / "cpu.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_schema_has_the_flags_that_there_are() -> None:
    command = [sys.executable, DEPLOY / "values_schema.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_chart_is_of_this_version() -> None:
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == __version__


def test_every_value_is_in_the_schema_and_used() -> None:
    known = json.loads((CHART / "values.schema.json").read_text())["properties"]
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(known) - {"global"} == set(values)
    used = "".join(path.read_text() for path in (CHART / "templates").iterdir())
    assert [name for name in values if f".Values.{name}" not in used] == []


def test_large_numbers_and_lists_reach_the_server_whole() -> None:
    flags = 'flags={"max-request-bytes":268435456,"drain-timeout":1.5,"fallback":["a=b","c=d"]}'
    words = server_words(rendered("cpu", flags))
    wanted = ["--max-request-bytes=268435456", "--drain-timeout=1.5"]
    assert set(words) >= {*wanted, "--fallback=a=b", "--fallback=c=d"}


def test_probes_ask_over_tls_where_the_port_has_it() -> None:
    pod = server(rendered("production"))
    probes = ("startupProbe", "livenessProbe", "readinessProbe")
    assert {container(pod)[probe]["httpGet"]["scheme"] for probe in probes} == {"HTTPS"}
    assert "--tls-certificate=/tls/tls.crt" in container(pod)["args"]
    assert {"keys", "tls"} <= {each["name"] for each in container(pod)["volumeMounts"]}
    (pull,) = pod["spec"]["initContainers"]
    assert not {"keys", "tls"} & {each["name"] for each in pull["volumeMounts"]}


def test_what_is_pulled_is_served_under_its_name() -> None:
    more = ('pull.include=["*.onnx"]', 'vllmArgs=["--seed",3]')
    pod = server(rendered("production", *more))
    (pull,) = pod["spec"]["initContainers"]
    source, other = "s3://models.example/net", "oci://registry.example/models/chat:1.2"
    assert pull["args"] == [source, other, "--include=*.onnx"]
    given = models_cli._parser("ds-models").parse_args([*pull["command"][3:], *pull["args"]])
    assert given.source == [source, other]
    words = container(pod)["args"]
    assert words[:4] == [f"net={source}", other, "--include=*.onnx", "--"]
    assert words[-3:] == ["--", "--seed", "3"]
    (docker,) = (each for each in pod["spec"]["volumes"] if each["name"] == "pull")
    assert docker["secret"]["items"][0]["path"] == "config.json"
    assert {"name": "DOCKER_CONFIG", "value": "/pull"} in pull["env"]


def test_what_scales_the_servers_sets_their_number() -> None:
    assert one(rendered("cpu"), "Deployment")["spec"]["replicas"] == 2
    for values, kind in (("hpa", "HorizontalPodAutoscaler"), ("production", "ScaledObject")):
        deployment = one(rendered(values), "Deployment")
        assert "replicas" not in deployment["spec"]
        target = one(rendered(values), kind)["spec"]["scaleTargetRef"]
        assert target["name"] == deployment["metadata"]["name"]
    (metric,) = one(rendered("hpa"), "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == "ds_load"
    assert metric["pods"]["target"]["averageValue"] == "700m"


def test_a_changed_file_makes_new_pods() -> None:
    def mark(content: str) -> str:
        template = server(rendered("cpu", f'files={{"chat.jinja":"{content}"}}'))
        return str(template["metadata"]["annotations"]["checksum/files"])

    assert mark("one") != mark("two")
    objects = rendered("cpu", 'files={"chat.jinja":"one"}')
    assert one(objects, "ConfigMap")["data"] == {"chat.jinja": "one"}


def test_keys_given_as_content_become_a_secret() -> None:
    objects = rendered("cpu", 'apiKeys.content="[keys.a]\\nsha256 = \\"00\\"\\n"')
    secret = one(objects, "Secret")
    assert secret["stringData"] == {"keys.toml": '[keys.a]\nsha256 = "00"\n'}
    (volume,) = (v for v in server(objects)["spec"]["volumes"] if v["name"] == "keys")
    assert volume["secret"]["secretName"] == secret["metadata"]["name"]


def test_the_nodes_of_a_group_are_told_the_same() -> None:
    objects = rendered("multi-node")
    assert not any(each["kind"] == "Deployment" for each in objects)
    group = one(objects, "LeaderWorkerSet")
    names = {each["metadata"]["name"] for each in objects if each["kind"] == "Service"}
    assert group["metadata"]["name"] not in names, "it makes a Service of its own name"
    template = group["spec"]["leaderWorkerTemplate"]
    leader, worker = (
        container(template[f"{role}Template"])["args"] for role in ("leader", "worker")
    )
    theirs = leader[leader.index("--") + 1 :]
    common = [word for word in theirs if not word.startswith("--node-rank")]
    assert [word for word in worker[3:] if not word.startswith("--node-rank")] == common
    assert worker[:3] == ["serve", "/models/chat-405b", "--headless"]
    assert "--model=chat=/models/chat-405b" in leader
    assert "--node-rank=0" in theirs
    assert "--node-rank=$(LWS_WORKER_INDEX)" in worker
    assert f"--nnodes={template['size']}" in common


def test_the_workers_of_a_group_outlive_its_leader() -> None:
    with socket.create_server(("127.0.0.1", 0)) as leader:
        port = leader.getsockname()[1]
        group = one(rendered("multi-node", f"multiNode.port={port}"), "LeaderWorkerSet")
        worker = container(group["spec"]["leaderWorkerTemplate"]["workerTemplate"])
        command = worker["lifecycle"]["preStop"]["exec"]["command"]
        where = os.environ | {"LWS_LEADER_ADDRESS": "127.0.0.1"}
        hook = subprocess.Popen(command, env=where)
        for _ in range(2):
            leader.accept()[0].close()
        assert hook.poll() is None
    assert hook.wait(30) == 0


def test_a_group_can_be_scaled_too() -> None:
    objects = rendered("multi-node", 'autoscaling.kind="keda"')
    group = one(objects, "LeaderWorkerSet")
    assert "replicas" not in group["spec"]
    target = one(objects, "ScaledObject")["spec"]["scaleTargetRef"]
    assert target == {
        "apiVersion": group["apiVersion"], "kind": group["kind"], "name": group["metadata"]["name"]
    }  # fmt: skip


def test_the_job_s_arguments_are_ds_quantize_s() -> None:
    job = one(rendered("quantize"), "Job")
    each = container(job["spec"]["template"])
    assert each["command"][:3] == ["/usr/bin/tini", "--", "ds-quantize"]
    given = quantize_cli.parser().parse_args([*each["command"][3:], *each["args"]])
    assert (given.command, given.recipe) == ("run", "int8")
    (served,) = (word for word in server_words(rendered("quantize")) if "repository=" in word)
    assert str(given.output.parent) == served.partition("=")[2]
    data = Path(given.calibration), Path(given.evaluation)
    assert not any(each.is_relative_to(given.output.parent) for each in data), "data is no model"
    other = one(rendered("quantize", 'quantize.recipe="int4"'), "Job")
    assert other["metadata"]["name"] != job["metadata"]["name"]


def test_the_job_s_image_is_one_that_is_made() -> None:
    images = {file.suffix[1:] for file in (ROOT / "deploy/containers").glob("Containerfile.*")}
    for values in SETS:
        for template in templates(rendered(values)):
            name = container(template)["image"]
            assert name.removeprefix(f"ds-serve:{__version__}-") in images
    own = one(rendered("quantize", 'quantize.image="registry.example/mine:1"'), "Job")
    assert container(own["spec"]["template"])["image"] == "registry.example/mine:1"


def test_a_budget_is_about_all_nodes_of_a_group() -> None:
    selector = one(rendered("multi-node"), "PodDisruptionBudget")["spec"]["selector"]
    (rule,) = selector["matchExpressions"]
    components = {
        template["metadata"]["labels"][rule["key"]]
        for template in templates(rendered("multi-node"))
    }
    assert rule["operator"] == "In"
    assert set(rule["values"]) == components


def test_alerts_lead_to_the_page_that_is_named() -> None:
    page = "https://docs.example/dashboards.html"
    objects = rendered("production", f'prometheusRule.runbooks="{page}"')
    (group,) = one(objects, "PrometheusRule")["spec"]["groups"]
    links = [rule["annotations"]["runbook_url"] for rule in group["rules"]]
    assert links
    assert all(link.startswith(f"{page}#ds") for link in links)


def test_rules_and_dashboards_come_along() -> None:
    objects = rendered("production")
    rules = one(objects, "PrometheusRule")["spec"]
    assert rules == yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text())
    boards = one(objects, "ConfigMap", "demo-dashboards")["data"]
    files = {path.name: path.read_text() for path in (ROOT / "deploy/grafana").glob("*.json")}
    assert {name: json.loads(text) for name, text in boards.items()} == {
        name: json.loads(text) for name, text in files.items()
    }


def test_the_page_names_every_set_of_values() -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    assert set(re.findall(r"values/([a-z-]+)\.yaml", page)) == set(SETS)
