"""The command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from ds_engines.errors import ServeError
from ds_serve import __version__, api, logs
from ds_serve.settings import Settings, flag

USAGE_ERROR = 2

HELP = {
    "host": "address to listen on",
    "http_port": "port for HTTP; 0 for a free one",
    "grpc_port": "port for gRPC; 0 for a free one",
    "grpc_server": "what carries gRPC: native (fast calls), pyvoy (fast streams too) or grpcio",
    "gateways": "gateway processes that share the ports",
    "device": "where models run: auto or cpu",
    "quantization": "quantize when loading; no engine of this version can",
    "max_seq_len": "tokens of prompt and answer together, for text models; 0: the model's own",
    "memory_efficient": "a smaller KV cache at lower precision, for text models",
    "max_batch_size": "rows that tensor requests are joined into at most",
    "batch_delay_us": "microseconds that a request waits for others to share its batch",
    "max_queue_size": "tensor requests that wait for one model at most; then 503",
    "request_timeout": "seconds that a tensor request may take; then 504",
    "text_timeout": "seconds that a text request may take; then 504",
    "drain_timeout": "seconds that requests in flight get when the server stops",
    "hang_timeout": "seconds of one batch, or of silence, after which a worker is restarted",
    "max_request_bytes": "bytes of one request's body; then 413",
    "max_bytes_in_flight": "bytes of all requests that a gateway holds; then 503",
    "exit_on_model_failure": "end, with status 1, when any model fails for good",
    "trace_file": "file for traces of single requests, in Triton's format; none: no traces",
    "trace_rate": "trace one request in so many",
    "trace_count": "traces to make at most; -1: no end",
    "trace_log_frequency": "traces for each file, X.0, X.1 and so on; 0: one file",
    "log_format": "text or json",
    "log_level": "debug, info, warning or error",
}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="ds-serve",
        description="One server for every model a team has: OpenAI REST and KServe v2 over HTTP "
        "and gRPC.",
    )
    made.add_argument("--version", action="version", version=f"ds-serve {__version__}")
    made.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="[NAME=]MODEL",
        help="a .onnx or .gguf file, a model folder, or a catalogue name; may be repeated",
    )
    made.add_argument(
        "--list-models", action="store_true", help="list the catalogue and what is fetched"
    )
    defaults = Settings()
    for name in Settings.__struct_fields__:
        _add(made, name, getattr(defaults, name))
    return made


def _add(made: argparse.ArgumentParser, name: str, default: Any) -> None:
    if isinstance(default, bool):
        made.add_argument(flag(name), action="store_true", help=HELP[name])
        return
    shown = f" (default: {default})" if default not in ("", 0) else ""
    made.add_argument(
        flag(name), type=type(default), default=default, metavar="X", help=HELP[name] + shown
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Exit status: 0 after a clean stop, 1 with no model left, 2 for a wrong call."""
    arguments = vars(parser().parse_args(argv))
    models = arguments.pop("model")
    if arguments.pop("list_models"):
        from ds_serve.catalogue import cli  # noqa: PLC0415

        return cli.main(["list"])
    try:
        settings = Settings(**arguments)
        settings.check()
        logs.configure(settings.log_format, settings.log_level, "supervisor")
        return api.serve(settings, api.resolve(models))
    except ServeError as error:
        print(f"ds-serve: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
