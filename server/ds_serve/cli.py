"""The command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from ds_engines.errors import ServeError
from ds_serve import __version__, api, logs, triton_flags
from ds_serve.settings import Settings, flag

USAGE_ERROR = 2

NO_FLAG = ("vllm_args",)
"""What the command line has in another way: after --."""

HELP = {
    "model_repository": "a folder of models in Triton's layout, or its address; may be repeated",
    "model_control_mode": "none (load all at the start), poll (follow the repository's changes) or "
    "explicit (clients load and unload)",
    "load_model": "a model to load at the start in mode explicit, * for all; may be repeated",
    "upstream_key": "where the key of a model on another server is, as NAME=FILE or "
    "NAME=env:VARIABLE; may be repeated",
    "fallback": "who answers while a text model is full or fails, as MODEL=OTHER; may be repeated",
    "escalate": "whom a model asks when it is not sure, as MODEL=OTHER?below=0.9 for classifiers, "
    "MODEL=OTHER?tokens=1000 for text; may be repeated",
    "max_tokens_in_flight": "tokens of prompts and answers that a text model has at one time; "
    "0: as many as its KV cache holds, where it says so",
    "max_text_queue": "text requests that wait for one model at most, in each gateway; then 429",
    "upstream_probe": "seconds from one look at a model's other server to the next; 0: none",
    "replica_routing": "prefix (to the replica that has seen the prompt's beginning, unless it is "
    "busy) or random",
    "files": "folder for /v1/files and /v1/batches; none: there are none",
    "batch_requests": "requests of batches that run at one time, behind all others",
    "repository_poll_secs": "seconds from one look at the repository to the next, in mode poll",
    "strict_readiness": "whether the server is ready only while all its models are",
    "exit_on_error": "end, with status 1, when a model cannot be loaded at the start",
    "id": "the name that the server says it has",
    "host": "address to listen on",
    "http_port": "port for HTTP; 0 for a free one",
    "grpc_port": "port for gRPC; 0 for a free one",
    "metrics_port": "port for the metrics alone; 0: only /metrics of the HTTP port has them",
    "grpc_server": "what carries gRPC: native (fast calls), pyvoy (fast streams too) or grpcio",
    "grpc_infer_response_compression_level": "none, or low, medium or high for answers in gzip",
    "gateways": "gateway processes that share the ports; 0: two, or one on a single processor",
    "device": "where models run: auto, cpu, cuda or rocm, or GPUs by their numbers, such as "
    "cuda:1, or cuda:0,1 for a worker on each; cpu,cpu is two workers on the CPU",
    "engine": "what serves models: auto; for text vllm, openvino-genai or encoder; for tensors "
    "onnxruntime, tensorrt or openvino",
    "vllm_python": "the Python of the environment that vLLM is installed in; none: DS_VLLM_PYTHON "
    "of the environment, or our own",
    "trust": "serve files that hold code of their own, TorchScript and AOTInductor's packages: "
    "they may do whatever the server may",
    "dtype": "numbers to compute in: auto, fp32, fp16 or bf16, which may be called float32, "
    "float16 and bfloat16 as well; an engine that has no such numbers refuses",
    "tensor_parallel": "GPUs that each layer of a text model is split over",
    "pipeline_parallel": "groups of GPUs that a text model's layers are shared out to",
    "replicas": "workers of each text model",
    "lora": "an adapter of a text model, as NAME=PATH; requests name it as their model; may be "
    "repeated",
    "prefix_caching": "whether text models on the CPU keep what they know of prompts' beginnings",
    "chat_template": "file of the template that a text model's chats are written with, instead of "
    "its own",
    "quantization": "the recipe by which ds-quantize makes ONNX files of --model smaller before "
    "they are served, see `ds-quantize recipes`; int8 or int4 for the weights of a Hugging Face "
    "folder that OpenVINO serves",
    "calibration": "the data that --quantization measures ranges on",
    "evaluation": "the data that --quantization judges by; where none are given, those of "
    "--calibration",
    "allow_unverified": "serve versions that did not pass their gate, or have changed since",
    "max_seq_len": "tokens of prompt and answer together, for text models; 0: the model's own",
    "memory_efficient": "less memory, at some cost of speed: for text models a smaller KV cache at "
    "lower precision; for tensor models fewer copies of weights and no memory kept between batches",
    "debug_numerics": "run every batch of tensor models layer by layer first; one in which a layer "
    "yields NaN or infinity fails with that layer's name; several times slower",
    "max_batch_size": "rows that tensor requests are joined into at most",
    "batch_delay_us": "microseconds that a request waits for others to share its batch",
    "max_queue_size": "tensor requests that wait for one model at most; then 503",
    "request_timeout": "seconds that a tensor request may take; then 504",
    "text_timeout": "seconds that a text request may take; then 504",
    "drain_timeout": "seconds that requests in flight get when the server stops",
    "hang_timeout": "seconds of one batch, or of silence, after which a worker is restarted",
    "max_request_bytes": "bytes of one request's body; then 413",
    "max_bytes_in_flight": "bytes of all requests that a gateway holds; then 503",
    "max_connections": "connections that a gateway holds at one port; 0: any number; gRPC's count "
    "with --grpc-server grpcio only",
    "response_cache_byte_size": "bytes of answers kept for models that enable response_cache; "
    "0: none",
    "exit_on_model_failure": "end, with status 1, when any model fails for good",
    "trace_file": "file for traces of single requests, in Triton's format; none: no traces",
    "otlp_endpoint": "address of an OpenTelemetry collector that traces go to; none: no spans",
    "metrics_push": "address that metrics are sent to by OpenTelemetry's protocol; they are kept "
    "while it cannot be reached; none: they are only read",
    "metrics_push_secs": "seconds from one sending of metrics to the next",
    "metrics_push_folder": "folder for metrics that wait to be sent; none: one in the cache",
    "trace_rate": "trace one request in so many",
    "trace_count": "traces to make at most; -1: no end",
    "trace_log_frequency": "traces for each file, X.0, X.1 and so on; 0: one file",
    "api_keys": "file of API keys; none: everybody is let in",
    "open_metrics": "whether the metrics need no key",
    "open_control": "whether everybody may load models in mode explicit, without keys",
    "tls_certificate": "certificate of both ports, in PEM; none: no encryption",
    "tls_key": "the certificate's key, in PEM",
    "tls_client_ca": "who signs clients' certificates, in PEM; then each must show one",
    "cluster": "address of a Ray cluster that runs the models, such as auto on one of its nodes, "
    "and this server answers for them; none: they run here",
    "cluster_replicas": "replicas of each model on the cluster at least and at most, as MIN:MAX",
    "cluster_requests": "requests that wait and run on one replica, on average, before there are "
    "more replicas",
    "cluster_cpus": "processors that Ray reserves for each replica",
    "cluster_resources": "what else Ray reserves for each replica, as NAME=AMOUNT, such as "
    "GPU=0.5; may be repeated",
    "cluster_up_secs": "seconds that there must be too many requests before a replica is added",
    "cluster_down_secs": "seconds that there must be too few before one is taken away",
    "log_format": "text, json, or ISO8601 for text with whole dates",
    "log_level": "debug, info, warning or error",
}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="ds-serve",
        description="One server for every model a team has: OpenAI REST and KServe v2 over HTTP "
        "and gRPC.",
        epilog="Anything after -- goes to vLLM as it is.",
    )
    made.add_argument("--version", action="version", version=f"ds-serve {__version__}")
    made.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="[NAME=]MODEL",
        help="a .onnx or .gguf file, a model folder, an id of the Hugging Face hub, or a catalogue "
        "name; a text model may have settings of its own: chat=FOLDER?max_seq_len=4096; may be "
        "repeated",
    )
    made.add_argument(
        "--list-models", action="store_true", help="list the catalogue and what is fetched"
    )
    defaults = Settings()
    for name in Settings.__struct_fields__:
        if name in NO_FLAG:
            continue
        _add(made, name, getattr(defaults, name))
    return made


def _add(made: argparse.ArgumentParser, name: str, default: Any) -> None:
    if isinstance(default, bool):
        made.add_argument(
            flag(name), type=boolean, nargs="?", const=True, default=default, metavar="true|false",
            help=f"{HELP[name]} (default: {str(default).lower()})",
        )  # fmt: skip
        return
    if isinstance(default, tuple):
        made.add_argument(flag(name), action="append", default=[], metavar="X", help=HELP[name])
        return
    shown = f" (default: {default})" if default not in ("", 0) else ""
    made.add_argument(
        flag(name), type=type(default), default=default, metavar="X", help=HELP[name] + shown
    )


def boolean(text: str) -> bool:
    """A flag's value, as Triton reads it."""
    if text.lower() in ("true", "1", "on"):
        return True
    if text.lower() in ("false", "0", "off"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Exit status: 0 after a clean stop, 1 with no model left, 2 for a wrong call."""
    words = list(sys.argv[1:] if argv is None else argv)
    own = words.index("--") if "--" in words else len(words)
    try:
        given = triton_flags.translate(words[:own])
    except ServeError as error:
        print(f"ds-serve: {error}", file=sys.stderr)
        return USAGE_ERROR
    arguments = vars(parser().parse_args(given))
    models = arguments.pop("model")
    for name, value in arguments.items():
        if isinstance(value, list):
            arguments[name] = tuple(value)
    arguments["vllm_args"] = tuple(words[own + 1 :])
    if arguments.pop("list_models"):
        from ds_serve.catalogue import cli  # noqa: PLC0415

        return cli.main(["list", "--catalogue"])
    try:
        settings = Settings(**arguments)
        settings.check()
        logs.configure(settings.log_format, settings.log_level, "supervisor")
        return api.serve(*api.plan(settings, models))
    except ServeError as error:
        print(f"ds-serve: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
