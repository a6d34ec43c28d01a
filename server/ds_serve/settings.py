"""What an operator can set, with its defaults. The command line is made from this."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import msgspec

from ds_engines.errors import ConfigError
from ds_serve.edge.rules import rules
from ds_serve.gateway.config import SERVER, Limits
from ds_serve.logs import FORMATS, LEVELS, LogSettings
from ds_serve.security.settings import Security
from ds_serve.security.tls import TLS
from ds_serve.text_models import Wish
from ds_serve.tracing import OFF, TIMESTAMPS, TraceSettings

HIGHEST_PORT = 65535
CONTROL_MODES = ("none", "poll", "explicit")
ROUTINGS = ("prefix", "random")
GRPC_SERVERS = ("native", "grpcio", "pyvoy")
COMPRESSION_LEVELS = ("none", "low", "medium", "high")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Times are in seconds unless the name says otherwise, sizes in bytes."""

    model_repository: tuple[str, ...] = ()
    model_control_mode: str = "none"
    load_model: tuple[str, ...] = ()
    upstream_key: tuple[str, ...] = ()
    fallback: tuple[str, ...] = ()
    escalate: tuple[str, ...] = ()
    max_tokens_in_flight: int = 0
    max_text_queue: int = 1024
    replica_routing: str = "prefix"
    upstream_probe: float = 10.0
    files: str = ""
    batch_requests: int = 8
    repository_poll_secs: int = 15
    id: str = SERVER
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 0
    grpc_server: str = "native"
    grpc_infer_response_compression_level: str = "none"
    gateways: int = 0
    device: str = "auto"
    engine: str = "auto"
    vllm_python: str = ""
    vllm_args: tuple[str, ...] = ()
    trust: bool = False
    dtype: str = "auto"
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    replicas: int = 1
    lora: tuple[str, ...] = ()
    prefix_caching: bool = True
    chat_template: str = ""
    quantization: str = ""
    calibration: str = ""
    evaluation: str = ""
    allow_unverified: bool = False
    max_seq_len: int = 0
    memory_efficient: bool = False
    debug_numerics: bool = False
    max_batch_size: int = 64
    batch_delay_us: int = 0
    max_queue_size: int = 1024
    request_timeout: float = 60.0
    text_timeout: float = 600.0
    drain_timeout: float = 30.0
    hang_timeout: float = 30.0
    max_request_bytes: int = Limits().max_request_bytes
    max_bytes_in_flight: int = Limits().max_bytes_in_flight
    max_connections: int = Limits().max_connections
    response_cache_byte_size: int = 0
    strict_readiness: bool = True
    exit_on_error: bool = False
    exit_on_model_failure: bool = False
    trace_file: str = ""
    trace_rate: int = TraceSettings().trace_rate
    trace_count: int = TraceSettings().trace_count
    trace_log_frequency: int = TraceSettings().log_frequency
    otlp_endpoint: str = ""
    metrics_push: str = ""
    metrics_push_secs: float = 15.0
    metrics_push_folder: str = ""
    api_keys: str = ""
    open_metrics: bool = False
    open_control: bool = False
    tls_certificate: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""
    cluster: str = ""
    cluster_replicas: str = "1:4"
    cluster_requests: float = 16.0
    cluster_cpus: float = 1.0
    cluster_resources: tuple[str, ...] = ()
    cluster_up_secs: float = 30.0
    cluster_down_secs: float = 600.0
    log_format: str = "text"
    log_level: str = "info"

    @property
    def wish(self) -> Wish:
        """What it says of engines."""
        return Wish(self.engine, self.vllm_python, self.device, self.trust)

    @property
    def limits(self) -> Limits:
        return Limits(
            request_timeout=self.request_timeout,
            text_timeout=self.text_timeout,
            max_request_bytes=self.max_request_bytes,
            max_bytes_in_flight=self.max_bytes_in_flight,
            max_connections=self.max_connections,
            max_tokens_in_flight=self.max_tokens_in_flight,
            max_text_queue=self.max_text_queue,
            replica_routing=self.replica_routing,
            upstream_probe=self.upstream_probe,
            fallbacks={pair.partition("=")[0]: pair.partition("=")[2] for pair in self.fallback},
            escalations=rules(self.escalate),
        )

    @property
    def security(self) -> Security:
        return Security(
            keys=_absolute(self.api_keys),
            open_metrics=self.open_metrics,
            # In other modes nobody loads models, and the answer says so.
            open_control=self.open_control or self.model_control_mode != "explicit",
            tls=TLS(
                _absolute(self.tls_certificate),
                _absolute(self.tls_key),
                _absolute(self.tls_client_ca),
            ),
        )

    @property
    def grpc_carrier(self) -> str:
        """Only grpcio encrypts."""
        return "grpcio" if self.tls_certificate else self.grpc_server

    @property
    def logs(self) -> LogSettings:
        return LogSettings.at(self.log_level, self.log_format)

    @property
    def tracing(self) -> TraceSettings:
        """Of the whole server."""
        return TraceSettings(
            trace_file=str(Path(self.trace_file).absolute()) if self.trace_file else "",
            trace_level=TIMESTAMPS if self.trace_file or self.otlp_endpoint else OFF,
            trace_rate=self.trace_rate,
            trace_count=self.trace_count,
            log_frequency=self.trace_log_frequency,
            otlp_endpoint=self.otlp_endpoint,
        )

    def check(self) -> None:
        """Raises ConfigError naming the flag whose value cannot be."""
        for name, kind in _KINDS.items():
            given = getattr(self, name)
            fits = type(given) is kind or (kind is float and type(given) is int)
            self._require(name, fits, f"of type {kind.__name__}")
        for name in ("http_port", "grpc_port", "metrics_port"):
            self._require(name, 0 <= getattr(self, name) <= HIGHEST_PORT, f"0 to {HIGHEST_PORT}")
        for one, other in combinations(("http_port", "grpc_port", "metrics_port"), 2):
            if getattr(self, one) == getattr(self, other) != 0:
                raise ConfigError(f"{flag(one)} and {flag(other)} are both {getattr(self, one)}")
        for name in (
            "repository_poll_secs",
            "max_batch_size",
            "max_queue_size",
            "max_request_bytes",
            "batch_requests",
            "tensor_parallel",
            "pipeline_parallel",
            "replicas",
        ):
            self._require(name, getattr(self, name) >= 1, "1 or more")
        self._require("trace_rate", self.trace_rate >= 1, "1 or more")
        self._require("trace_count", self.trace_count >= -1, "-1 or more")
        for name in (
            "gateways",
            "response_cache_byte_size",
            "max_connections",
            "batch_delay_us",
            "max_seq_len",
            "max_tokens_in_flight",
            "max_text_queue",
            "upstream_probe",
            "cluster_cpus",
            "cluster_up_secs",
            "cluster_down_secs",
            "drain_timeout",
            "trace_log_frequency",
        ):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        for name in (
            "request_timeout",
            "text_timeout",
            "hang_timeout",
            "metrics_push_secs",
            "cluster_requests",
        ):
            self._require(name, getattr(self, name) > 0, "above 0")
        mode = self.model_control_mode
        self._require("model_control_mode", mode in CONTROL_MODES, " or ".join(CONTROL_MODES))
        if self.load_model and mode != "explicit":
            raise ConfigError(
                f"--load-model {self.load_model[0]} needs --model-control-mode=explicit, but the "
                f"mode is {mode}"
            )
        for name in ("calibration", "evaluation"):
            if getattr(self, name) and not self.quantization:
                raise ConfigError(
                    f"{flag(name)} {getattr(self, name)} is data for --quantization, which is not "
                    "given"
                )
        rules(self.escalate)
        self.security.check()
        if self.tls_certificate and self.grpc_server == "pyvoy":
            raise ConfigError("--tls-certificate: with TLS, gRPC is carried by grpcio, not pyvoy")
        self._require("grpc_server", self.grpc_server in GRPC_SERVERS, " or ".join(GRPC_SERVERS))
        self._check_compression()
        self._require("replica_routing", self.replica_routing in ROUTINGS, " or ".join(ROUTINGS))
        self._require("log_format", self.log_format in FORMATS, " or ".join(FORMATS))
        self._require("log_level", self.log_level in LEVELS, ", ".join(LEVELS))
        if self.max_bytes_in_flight < self.max_request_bytes:
            raise ConfigError(
                f"--max-bytes-in-flight {self.max_bytes_in_flight} is below "
                f"--max-request-bytes {self.max_request_bytes}"
            )

    def _check_compression(self) -> None:
        name = "grpc_infer_response_compression_level"
        level = self.grpc_infer_response_compression_level
        self._require(name, level in COMPRESSION_LEVELS, " or ".join(COMPRESSION_LEVELS))
        if level != "none" and self.grpc_server != "grpcio":
            raise ConfigError(
                f"{flag(name)} {level} needs --grpc-server grpcio; {self.grpc_server} compresses "
                "no answers"
            )

    def _require(self, name: str, holds: bool, right: str) -> None:
        if not holds:
            raise ConfigError(f"{flag(name)} is {getattr(self, name)!r}; it must be {right}")


def _absolute(path: str) -> str:
    return str(Path(path).absolute()) if path else ""


_KINDS = {name: type(getattr(Settings(), name)) for name in Settings.__struct_fields__}


def flag(name: str) -> str:
    """The command-line flag of a setting."""
    return "--" + name.replace("_", "-")
