"""From settings and models to the configs and commands of the child processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ds_engines import precision
from ds_engines.base import EngineOptions, require_inspector
from ds_engines.errors import ConfigError, Unsupported
from ds_engines.spec import BatchPolicy, ModelSpec
from ds_serve import spans, tensor_engines, text_models, tracing, upstream
from ds_serve.edge import pushing, rules
from ds_serve.embed import settings as encoder
from ds_serve.extras import installed
from ds_serve.gateway.config import GatewayConfig
from ds_serve.logs import LogSettings
from ds_serve.models import ModelSource
from ds_serve.settings import Settings, flag
from ds_serve.text_models import ENCODER, VLLM
from ds_serve.text_tensors import INPUTS, OUTPUTS, of_encoder
from ds_serve.vllm import command as vllm
from ds_serve.vllm import installation
from ds_serve.vllm.guard import Job
from ds_serve.vllm.options import Options, options, own
from ds_serve.worker.config import CacheConfig, WorkerConfig

TORCH, PYTHON = "torch", "python"
TEXT_PLATFORM = "openvino_genai"
_PLATFORMS = {upstream.ENGINE: "openai", VLLM: "vllm", ENCODER: "openvino"}


def check(settings: Settings, sources: Sequence[ModelSource]) -> None:
    """Raises ConfigError for a setting that no model here can honour, and names it."""
    settings.check()
    texts = [source for source in sources if source.task == "text"]
    if settings.max_seq_len and not texts and not settings.model_repository:
        raise ConfigError("--max-seq-len bounds text models, and none is given")
    for source in sources:
        check_source(settings, source)
    here = not settings.cluster
    if here and settings.vllm_args and not any(source.engine == VLLM for source in sources):
        raise ConfigError(
            f"-- {settings.vllm_args[0]}: it is for vLLM, which no model here runs on"
        )
    if settings.lora and not texts and not settings.model_repository:
        raise ConfigError(f"--lora {settings.lora[0]}: it is for a text model, and none is given")
    if settings.lora and len(texts) > 1:
        raise ConfigError(
            f"--lora {settings.lora[0]}: there are {len(texts)} text models; say whose it is: "
            "--model 'NAME=MODEL?lora=NAME=PATH'"
        )
    upstream.keys(settings.upstream_key, [one.name for one in sources if one.upstream])
    upstream.fallbacks(settings.fallback, [one.name for one in texts])
    tasks = {one.name: one.task for one in sources}
    rules.check(settings.escalate, tasks, open_ended=bool(settings.model_repository))
    if settings.metrics_push:
        pushing.check(settings.metrics_push)
    if settings.grpc_server == "pyvoy" and not (installed("pyvoy") and installed("envoy")):
        raise ConfigError(
            "--grpc-server pyvoy needs the package pyvoy: pip install 'ds-serve[pyvoy]'"
        )
    if settings.otlp_endpoint:
        spans.check(settings.otlp_endpoint)
    if settings.trace_file and not settings.trace_log_frequency:
        tracing.create(Path(settings.trace_file))


def check_source(settings: Settings, source: ModelSource) -> None:
    """Raises ConfigError for a setting that this model cannot honour, and names it."""
    if source.ensemble is not None or source.upstream is not None or source.refusal:
        return
    if source.engine == VLLM:
        found = installation.require(installation.interpreter(settings.vllm_python))
        vllm.check(found, source.name, options(settings, source), settings.vllm_args)
        return
    if source.engine == TORCH and not installed(TORCH):
        raise ConfigError(
            f"model {source.name!r} is a program of PyTorch, which is not installed: pip install "
            "'ds-serve[torch]', or export the model to ONNX"
        )
    if source.task == "text":
        _check_text(source, options(settings, source))
    tensor_engines.check_device(source.name, source.engine, settings.device)
    if source.task == "tensor":
        _check_tensor(settings, source)


def _check_tensor(settings: Settings, source: ModelSource) -> None:
    precision.canonical(settings.dtype)
    if settings.debug_numerics:
        try:
            require_inspector(source.engine)
        except Unsupported as error:
            raise ConfigError(f"model {source.name!r}: {error}") from None
    for name in ("memory_efficient", "dtype"):
        if source.engine == PYTHON and getattr(settings, name) not in (False, "auto"):
            raise ConfigError(
                f"{flag(name)}: model {source.name!r} is a Python model, which decides by itself"
            )


def _check_encoder(source: ModelSource, given: Options) -> None:
    if given.dtype not in encoder.DTYPES:
        raise ConfigError(
            f"model {source.name!r}: dtype is {given.dtype}; an encoder on the CPU has "
            f"{', '.join(encoder.DTYPES)}"
        )
    for name in ("memory_efficient", "lora"):
        if getattr(given, name):
            raise ConfigError(f"model {source.name!r} is an encoder, which has no {name}")


def _check_text(source: ModelSource, given: Options) -> None:
    if own(source.options, "quantization"):
        raise ConfigError(
            f"model {source.name!r}: quantization after '?' is for vLLM, and it runs on "
            f"{source.engine}; give --quantization int8 or int4"
        )
    for name, path in given.adapters.items():
        if not Path(path).exists():
            raise ConfigError(f"--lora {name}={path}: there is no such file or folder")
    if source.engine == ENCODER:
        _check_encoder(source, given)
        given = msgspec.structs.replace(given, dtype="auto")
    for name, usual in (("tensor_parallel", 1), ("pipeline_parallel", 1), ("dtype", "auto")):
        if getattr(given, name) != usual:
            raise ConfigError(
                f"model {source.name!r}: {name} {getattr(given, name)} is for vLLM, and it runs on "
                f"{source.engine}"
            )


def worker_config(
    settings: Settings,
    source: ModelSource,
    threads: int,
    *,
    identity: str,
    socket: Path,
    control: Path,
    logs: LogSettings,
    device: str,
) -> WorkerConfig:
    policy = BatchPolicy(
        max_batch_size=settings.max_batch_size,
        max_delay_us=settings.batch_delay_us,
        max_queue_size=settings.max_queue_size,
    )
    return WorkerConfig(
        identity=identity,
        control=control,
        parent_pid=os.getpid(),
        logs=logs,
        spec=ModelSpec(
            name=source.name,
            engine=source.engine,
            artifact=source.artifact,
            version=source.version,
            batch=policy,
        ),
        options=EngineOptions(
            threads=threads,
            device=device,
            memory_efficient=settings.memory_efficient,
            dtype=precision.canonical(settings.dtype),
            debug_numerics=settings.debug_numerics,
            # What a client has sent is never trusted with code of its own.
            trust=settings.trust and source.scratch is None,
        ),
        socket=socket,
        config_file=source.config,
        folder=source.folder,
        cache=_cache(settings, control),
        allow_unverified=settings.allow_unverified,
        fallback=source.fallback,
    )


def devices_of(settings: Settings, source: ModelSource) -> list[str]:
    """Where the model is to run, a worker for each: those of its configuration, or `--device`'s."""
    return tensor_engines.devices_of(source.engine, settings.device, source.config)


def _cache(settings: Settings, control: Path) -> CacheConfig | None:
    """All workers count what they keep in one file, beside the control socket."""
    size = settings.response_cache_byte_size
    return CacheConfig(size, control.with_name("response-cache")) if size else None


def text_spec(source: ModelSource) -> ModelSpec:
    """A text model as KServe sees it."""
    encodes = source.engine == ENCODER
    inputs, outputs = of_encoder(source.artifact) if encodes else (INPUTS, OUTPUTS)
    return ModelSpec(
        name=source.name,
        engine=source.engine,
        artifact=source.artifact,
        task="text",
        version=source.version,
        inputs=inputs,
        outputs=outputs,
        platform=_PLATFORMS.get(source.engine, TEXT_PLATFORM),
    )


def upstream_of(settings: Settings, source: ModelSource) -> upstream.Upstream:
    """Where the model is, with its key. Raises ConfigError where the key is not there."""
    assert source.upstream is not None, "another server has it"
    key = upstream.keys(
        [each for each in settings.upstream_key if each.startswith(source.name + "=")],
        [source.name],
    )
    return msgspec.structs.replace(source.upstream, key=key.get(source.name, ""))


def vllm_job(
    settings: Settings,
    source: ModelSource,
    replica: int,
    logs: LogSettings,
    socket: Path,
    progress: Path,
) -> Job:
    """What serves one replica of a model with vLLM, on the GPUs that are its own."""
    found = installation.require(installation.interpreter(settings.vllm_python))
    given = options(settings, source)
    # It reads whatever folder it is told of: that is for administrators alone.
    guarded = bool(settings.api_keys) or settings.open_control
    loads = guarded and vllm.takes_adapters(given, settings.vllm_args)
    cards = vllm.cards(given, replica)
    # vLLM would take the first token's; the encoder on the CPU, and sentence-transformers, do not.
    plain = text_models.is_plain_encoder(source.artifact)
    words = vllm.with_means(settings.vllm_args) if plain else settings.vllm_args
    return Job(
        name=source.name,
        command=vllm.command(
            found,
            str(source.artifact),
            source.name,
            given,
            words,
            socket,
            settings.drain_timeout,
        ),
        environment=vllm.environment(found, given, cards, loads_adapters=loads),
        progress=str(progress),
        parent_pid=os.getpid(),
        logs=logs,
        hub="" if source.artifact.is_absolute() else str(source.artifact),
    )


def text_command(
    settings: Settings, source: ModelSource, threads: int, logs: LogSettings, socket: Path
) -> list[str]:
    encodes = source.engine == ENCODER
    command = [
        sys.executable, "-m", "ds_serve.embed" if encodes else "ds_serve.text",
        "--uds", str(socket),
        "--model", source.name,
        "--artifact", str(source.artifact),
        "--threads", str(threads),
        "--request-timeout", str(settings.text_timeout),
        "--drain-timeout", str(settings.drain_timeout),
        "--hang-timeout", str(settings.hang_timeout),
        "--log-format", logs.log_format,
        "--log-level", logs.level,
        "--parent-pid", str(os.getpid()),
    ]  # fmt: skip
    given = options(settings, source)
    if given.max_seq_len:
        command += ["--max-seq-len", str(given.max_seq_len)]
    if settings.allow_unverified:
        command.append("--allow-unverified")
    if encodes:
        return [*command, "--dtype", given.dtype]
    if given.memory_efficient:
        command.append("--memory-efficient")
    for adapter in given.lora:
        command += ["--lora", adapter]
    if not given.prefix_caching:
        command += ["--prefix-caching", "false"]
    if given.chat_template:
        command += ["--chat-template", given.chat_template]
    return command


def gateway_config(
    settings: Settings,
    *,
    identity: str,
    control: Path,
    logs: LogSettings,
    http_port: int,
    grpc_port: int,
) -> GatewayConfig:
    return GatewayConfig(
        identity=identity,
        control=control,
        parent_pid=os.getpid(),
        logs=logs,
        name=settings.id,
        host=settings.host,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=settings.metrics_port,
        grpc_server=settings.grpc_carrier,
        grpc_compressed=settings.grpc_infer_response_compression_level != "none",
        limits=settings.limits,
        security=settings.security,
        strict_readiness=settings.strict_readiness,
        files=str(Path(settings.files).expanduser().absolute()) if settings.files else "",
        batch_requests=settings.batch_requests,
    )
