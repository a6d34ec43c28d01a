"""From the settings to what Ray Serve is asked to run: a deployment for each model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from ds_engines.errors import ConfigError
from ds_serve import models as known
from ds_serve import upstream
from ds_serve.child import ChildConfig
from ds_serve.extras import installed
from ds_serve.models import ModelSource
from ds_serve.settings import Settings, flag
from ds_serve.text_models import VLLM, Wish
from ds_serve.vllm import options as text_options
from ds_serve.vllm.command import spans_nodes

SCHEME = "ray:"
"""The address of a model that runs on the cluster: its replicas' are known later."""

GPUS = ("cuda", "rocm")
CPU, GPU = "CPU", "GPU"
"""What Ray calls them."""

NOT_THERE = ("model_repository", "load_model", "quantization")
"""Settings that mean nothing where models run elsewhere, or would mean another thing."""

HERE = frozenset(
    {
        *(name for name in Settings.__struct_fields__ if name.startswith("cluster")),
        *("model_control_mode", "repository_poll_secs", "upstream_key", "fallback", "escalate"),
        *("max_tokens_in_flight", "max_text_queue", "replica_routing", "upstream_probe"),
        *(
            "files",
            "batch_requests",
            "trace_file",
            "id",
            "host",
            "http_port",
            "grpc_port",
            "metrics_port",
        ),
        *("grpc_server", "grpc_infer_response_compression_level", "gateways", "vllm_args"),
        *("api_keys", "open_metrics", "open_control"),
        *("tls_certificate", "tls_key", "tls_client_ca", "metrics_push", "metrics_push_secs"),
        *("metrics_push_folder", "strict_readiness", "exit_on_error", "exit_on_model_failure"),
        *("trace_rate", "trace_count", "trace_log_frequency", "calibration", "evaluation"),
        *NOT_THERE,
    }
)
"""Settings of the server that answers; all others are the replicas'."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One model's deployment. `arguments`: of the `ds-serve` that each replica runs.

    `base` follows a replica's address: /v1 or /v2. `resources`: what Ray reserves for a replica
    beside processors and GPUs, by its names. `spans`: vLLM reserves GPUs of its own, on several
    nodes. Times are in seconds.
    """

    name: str
    model: str
    base: str
    arguments: tuple[str, ...]
    wish: Wish
    least: int
    most: int
    requests: float
    cpus: float
    gpus: float
    resources: dict[str, float]
    spans: bool
    up: float
    down: float
    drain: float

    @property
    def application(self) -> str:
        """Its name in Ray Serve."""
        return f"ds-serve-{self.name}"


class AgentConfig(ChildConfig, frozen=True, kw_only=True):
    """`poll`: seconds between two looks at the models' files; 0: none."""

    address: str
    jobs: tuple[Job, ...]
    poll: float


def sources(settings: Settings, models: Sequence[str]) -> list[ModelSource]:
    """The models that `--model` names, as ones that other machines have. Nothing is fetched here.

    Raises ConfigError for what cannot be, also where Ray is not installed.
    """
    if not installed("ray"):
        raise ConfigError("--cluster needs the package ray: pip install 'ds-serve[ray]'")
    if not models:
        raise ConfigError("no model is given: with --cluster, name each by --model")
    _check(settings)
    found = [_source(settings, each) for each in models]
    if settings.vllm_args and not any(_engine(one) == VLLM for one in found):
        raise ConfigError(
            f"-- {settings.vllm_args[0]}: it is for vLLM, which no model is said to run on: give "
            "--engine vllm, or --device cuda"
        )
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"several models are named {name!r}; name each: --model NAME=...")
    return found


def _source(settings: Settings, model: str) -> ModelSource:
    if known.is_repository(model):
        raise ConfigError(f"--model {model}: with --cluster, name each model of a repository")
    found = known.named(model, _wish(settings))
    if found.upstream is not None:
        return found
    said = model.partition("=")[2] if model.startswith(f"{found.name}=") else model
    path, mark, own = (said, "", "") if Path(said).exists() else said.partition("?")
    if Path(path).exists():  # a replica's working folder is another one
        path = str(Path(path).absolute())
    least, most = bounds(settings)
    return msgspec.structs.replace(
        found,
        engine=upstream.ENGINE,
        artifact=Path(),
        config=None,
        folder=None,
        fallback="",
        upstream=upstream.Upstream(SCHEME + path + mark + own, found.engine),
        why=f"{least} to {most} replicas on the Ray cluster {settings.cluster}; each says which "
        "engine runs it",
    )


def _wish(settings: Settings) -> Wish:
    return settings.wish._replace(elsewhere=True)


def jobs(settings: Settings, found: Sequence[ModelSource]) -> tuple[Job, ...]:
    """The deployments of those that run on the cluster."""
    return tuple(_job(settings, one) for one in found if on_cluster(one))


def on_cluster(source: ModelSource) -> bool:
    return source.upstream is not None and source.upstream.url.startswith(SCHEME)


def _engine(source: ModelSource) -> str:
    """Of one on the cluster, as far as that is known here."""
    return source.upstream.model if source.upstream is not None and on_cluster(source) else ""


def _job(settings: Settings, source: ModelSource) -> Job:
    assert source.upstream is not None, "it is on the cluster"
    model, engine = source.upstream.url.removeprefix(SCHEME), _engine(source)
    least, most = bounds(settings)
    spans = engine == VLLM and spans_nodes(settings.vllm_args)
    given = resources(settings)
    return Job(
        name=source.name,
        model=f"{source.name}={model}",
        base="/v1" if source.task == "text" else "/v2",
        arguments=_arguments(settings, engine),
        wish=_wish(settings),
        least=least,
        most=most,
        requests=settings.cluster_requests,
        cpus=given.pop(CPU, settings.cluster_cpus),
        gpus=given.pop(GPU, 0.0 if spans else _gpus(settings, source)),
        resources=given,
        spans=spans,
        up=settings.cluster_up_secs,
        down=settings.cluster_down_secs,
        drain=settings.drain_timeout,
    )


def _arguments(settings: Settings, engine: str) -> tuple[str, ...]:
    """The replicas' own flags. One that fails for good ends, so that Ray starts another."""
    defaults = Settings()
    words = ["--exit-on-model-failure", "--exit-on-error"]
    if not settings.gateways and settings.cluster_cpus < 2:
        words += ["--gateways", "1"]
    for name in Settings.__struct_fields__:
        value = getattr(settings, name)
        if name in HERE or value == getattr(defaults, name):
            continue
        for each in value if isinstance(value, tuple) else (value,):
            words.append(f"{flag(name)}={_word(each)}")
    if settings.vllm_args and engine == VLLM:
        words += ["--", *settings.vllm_args]
    return tuple(words)


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _gpus(settings: Settings, source: ModelSource) -> float:
    """What Ray reserves for a replica."""
    if source.task != "text":
        return float(settings.device in GPUS)
    held = text_options.options(settings, source)
    if held.device not in GPUS:
        return 0.0
    return float(held.tensor_parallel * held.pipeline_parallel * held.replicas)


def resources(settings: Settings) -> dict[str, float]:
    """What --cluster-resources says, by Ray's names. Raises ConfigError."""
    found = {}
    for each in settings.cluster_resources:
        name, _, amount = each.rpartition("=")
        if not name or not re.fullmatch(r"\d+(\.\d+)?", amount):
            raise ConfigError(
                f"--cluster-resources {each}: it must be NAME=AMOUNT, such as GPU=0.5 or "
                "accelerator_type:H100=0.001"
            )
        found[name] = float(amount)
    return found


def bounds(settings: Settings) -> tuple[int, int]:
    """Replicas at least and at most. Raises ConfigError."""
    found = re.fullmatch(r"(\d+)(?::(\d+))?", settings.cluster_replicas)
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= least <= most:
        raise ConfigError(
            f"--cluster-replicas is {settings.cluster_replicas!r}; it must be MIN:MAX, with MIN 1 "
            "or more and MAX no less, such as 1:4"
        )
    return least, most


def _check(settings: Settings) -> None:
    bounds(settings)
    resources(settings)
    for name in NOT_THERE:
        if getattr(settings, name):
            raise ConfigError(f"{flag(name)} does not go with --cluster; see docs/ray.md")
    if settings.model_control_mode == "explicit":
        raise ConfigError("--model-control-mode explicit does not go with --cluster: none or poll")
    if ":" in settings.device:
        raise ConfigError(
            f"--device {settings.device}: with --cluster, Ray says which GPUs: --device cuda"
        )


def revision(job: Job) -> str:
    """What changes when the model's files or flags do. Raises ConfigError where they are not
    there.
    """
    source = known.named(job.model, job.wish)
    files = [path for path in (source.config,) if path is not None]
    artifact = source.artifact
    if artifact.is_dir():
        files += sorted(path for path in artifact.rglob("*") if path.is_file())
    elif artifact.is_file():
        files += sorted(artifact.parent.glob(f"{artifact.name}*"))
    found = blake2b(repr(job).encode(), digest_size=8)
    for file in files:
        status = file.stat()
        found.update(f"{file} {status.st_size} {status.st_mtime_ns}\n".encode())
    return found.hexdigest()
