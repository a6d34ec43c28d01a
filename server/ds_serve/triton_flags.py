"""Triton's launch flags in ds-serve's words, so that a team's command line goes on working.

Flags that both have are no matter of this module. A flag that asks for what is not here is refused
by name, with the reason: nothing that protects a server may be dropped in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ds_engines.errors import ConfigError

Words = list[str]

ALIASES = {
    "--model-store": "--model-repository",
    "--http-address": "--host",
    "--grpc-address": "--host",
    "--metrics-address": "--host",
    "--exit-timeout-secs": "--drain-timeout",
    "--http-max-input-size": "--max-request-bytes",
}
"""The same thing under another name."""

IGNORED = {
    "--allow-cpu-metrics": "what is measured does not depend on it",
    "--allow-gpu-metrics": "what is measured does not depend on it",
    "--backend-directory": "engines are Python packages",
    "--buffer-management-thread-count": "workers copy in threads of their own",
    "--cache-directory": "there are no plug-ins for caches",
    "--cuda-memory-pool-byte-size": "engines look after their memory",
    "--cuda-virtual-address-size": "engines look after their memory",
    "--disable-auto-complete-config": "a configuration that is complete stays as it is",
    "--enable-peer-access": "engines look after their memory",
    "--grpc-infer-allocation-pool-size": "messages are not pooled",
    "--grpc-infer-thread-count": "gateways have no threads; see --gateways",
    "--grpc-max-response-pool-size": "messages are not pooled",
    "--http-thread-count": "gateways have no threads; see --gateways",
    "--metrics-interval-ms": "metrics are as new as the question",
    "--min-supported-compute-capability": "engines look after their devices",
    "--model-load-retry-count": "workers that crash are started again anyway",
    "--model-load-thread-count": "models load side by side, each in its own process",
    "--pinned-memory-pool-byte-size": "engines look after their memory",
    "--repoagent-directory": "there are no repository agents",
    "--reuse-grpc-port": "gateways share the port anyway",
    "--reuse-http-port": "gateways share the port anyway",
    "--sagemaker-port": "SageMaker's routes are not served",
    "--sagemaker-safe-port-range": "SageMaker's routes are not served",
    "--sagemaker-thread-count": "SageMaker's routes are not served",
    "--strict-model-config": "a configuration that is complete stays as it is",
    "--vertex-ai-port": "Vertex AI's routes are not served",
    "--vertex-ai-thread-count": "Vertex AI's routes are not served",
}
"""Harmless: what they tune is done another way, or not needed."""

_KEPT = "connections are kept as what carries gRPC does by itself"
_TLS = "--tls-certificate, --tls-key and --tls-client-ca encrypt both ports"

REFUSED = {
    "--allow-sagemaker": "SageMaker's routes are not served",
    "--allow-vertex-ai": "Vertex AI's routes are not served",
    "--backend-config": "engines are set up by flags of ds-serve and by config.pbtxt",
    "--grpc-header-forward-pattern": "headers are not made parameters of requests",
    "--grpc-http2-max-ping-strikes": _KEPT,
    "--grpc-http2-max-pings-without-data": _KEPT,
    "--grpc-http2-min-recv-ping-interval-without-data": _KEPT,
    "--grpc-keepalive-permit-without-calls": _KEPT,
    "--grpc-keepalive-time": _KEPT,
    "--grpc-keepalive-timeout": _KEPT,
    "--grpc-max-connection-age": _KEPT,
    "--grpc-max-connection-age-grace": _KEPT,
    "--grpc-restricted-protocol": "protocols are not restricted by a header; see --api-keys",
    "--grpc-root-cert": _TLS,
    "--grpc-server-cert": _TLS,
    "--grpc-server-key": _TLS,
    "--grpc-use-ssl": _TLS,
    "--grpc-use-ssl-mutual": _TLS,
    "--host-policy": "processes are not bound to processors; use taskset or numactl",
    "--http-header-forward-pattern": "headers are not made parameters of requests",
    "--http-restricted-api": "routes are not restricted by a header; see --api-keys",
    "--log-file": "logs go to standard error; redirect it",
    "--metrics-config": "latencies are always histograms",
    "--model-config-name": "a model's configuration is its config.pbtxt",
    "--model-load-gpu-limit": "a GPU's memory is its engine's to bound",
    "--model-namespacing": "a model's name is its folder's, in all repositories",
    "--rate-limit-resource": "models have no resources that they compete for",
}
"""What ds-serve does not do, and why or what to do instead. False, off or 0 is no wish for it."""

REQUIRED = {
    "--allow-grpc": "gRPC is always served",
    "--allow-http": "HTTP is always served",
    "--allow-metrics": "/metrics is always served",
}
"""What ds-serve always does."""

NO = frozenset({"false", "0", "off"})
LEVELS = {"--log-info": "warning", "--log-warning": "error"}
"""The level that is left when one is switched off."""


def translate(arguments: Sequence[str]) -> Words:
    """The command line with Triton's flags replaced. Raises ConfigError naming one refused."""
    words: Words = []
    at: dict[str, str] = {}
    for flag, value, said in _flags(arguments):
        if ALIASES.get(flag) == "--host":
            at[flag] = value
        make = _MAKERS.get(flag)
        words += said if make is None else make(flag, value)
    if len(set(at.values())) > 1:
        given = ", ".join(f"{flag} {value}" for flag, value in at.items())
        raise ConfigError(f"{given}: ds-serve listens on one address with all ports, see --host")
    return words


def _flags(arguments: Sequence[str]) -> Iterator[tuple[str, str, Words]]:
    """Each flag, its value and the words that said so; words that follow no flag on their own."""
    index = 0
    while index < len(arguments):
        word = arguments[index]
        index += 1
        flag, equals, value = word.partition("=")
        said = [word]
        if not equals and flag in _MAKERS and _is_value(arguments[index : index + 1]):
            value = arguments[index]
            said.append(value)
            index += 1
        yield flag, value, said


def _is_value(following: Sequence[str]) -> bool:
    return bool(following) and not following[0].startswith("--")


def _rename(flag: str, value: str) -> Words:
    return [ALIASES[flag], value]


def _ignore(flag: str, value: str) -> Words:
    return []


def _refuse(flag: str, value: str) -> Words:
    if value.lower() in NO:
        return []
    raise ConfigError(f"{flag} is Triton's, and ds-serve does not have it: {REFUSED[flag]}")


def _require(flag: str, value: str) -> Words:
    if value.lower() in NO:
        raise ConfigError(f"{flag}={value} cannot be: {REQUIRED[flag]}")
    return []


def _rate_limit(flag: str, value: str) -> Words:
    if value in ("", "off"):
        return []
    raise ConfigError(f"{flag} {value} is Triton's, and ds-serve has off alone")


def _verbose(flag: str, value: str) -> Words:
    return [] if value in ("", "0", "false") else ["--log-level", "debug"]


def _level(flag: str, value: str) -> Words:
    return ["--log-level", LEVELS[flag]] if value.lower() in NO else []


def _errors(flag: str, value: str) -> Words:
    if value.lower() in NO:
        raise ConfigError(f"{flag}={value} cannot be: errors are always logged")
    return []


def _format(flag: str, value: str) -> Words:
    return [flag, "text" if value == "default" else value]


def _trace(flag: str, value: str) -> Words:
    """`--trace-config [triton,|opentelemetry,]key=value`."""
    mode, _, setting = value.rpartition(",")
    key, _, wanted = setting.partition("=")
    if (mode, key) == ("opentelemetry", "url"):
        return ["--otlp-endpoint", wanted]
    if mode not in ("", "triton"):
        raise ConfigError(f"{flag} {value} is not supported; there is {mode},url= alone")
    if setting in ("mode=triton", "mode=opentelemetry", "level=TIMESTAMPS"):
        return []
    known = {
        "file": "--trace-file",
        "rate": "--trace-rate",
        "count": "--trace-count",
        "log-frequency": "--trace-log-frequency",
    }
    if key not in known:
        right = ", ".join([*(f"{name}=" for name in known), "level=TIMESTAMPS"])
        raise ConfigError(f"{flag} {value} is not supported; there are {right}")
    return [known[key], wanted]


def _cache(flag: str, value: str) -> Words:
    """`--cache-config local,size=BYTES`."""
    kind, _, setting = value.partition(",")
    key, _, size = setting.partition("=")
    if (kind, key) != ("local", "size"):
        raise ConfigError(f"{flag} {value} is not supported; there is local,size=BYTES alone")
    return ["--response-cache-byte-size", size]


Maker = Callable[[str, str], Words]

_MAKERS: dict[str, Maker] = {
    **dict.fromkeys(ALIASES, _rename),
    **dict.fromkeys(IGNORED, _ignore),
    **dict.fromkeys(REFUSED, _refuse),
    **dict.fromkeys(REQUIRED, _require),
    **dict.fromkeys(LEVELS, _level),
    "--cache-config": _cache,
    "--log-error": _errors,
    "--log-format": _format,
    "--log-verbose": _verbose,
    "--rate-limit": _rate_limit,
    "--trace-config": _trace,
}
