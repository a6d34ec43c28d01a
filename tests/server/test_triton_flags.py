"""Triton's command lines."""

from __future__ import annotations

import pytest

from ds_engines.errors import ConfigError
from ds_serve.cli import parser
from ds_serve.triton_flags import IGNORED, REFUSED, translate


def settings(line: str) -> dict[str, object]:
    """What a command line sets that is not the default."""
    given = vars(parser().parse_args(translate(line.split())))
    usual = vars(parser().parse_args([]))
    return {name: value for name, value in given.items() if value != usual[name]}


@pytest.mark.parametrize(
    ("line", "set_"),
    [
        ("--model-store=/models", {"model_repository": ["/models"]}),
        ("--model-repository /a --model-repository /b", {"model_repository": ["/a", "/b"]}),
        ("--http-address :: --grpc-address=:: --metrics-address ::", {"host": "::"}),
        ("--exit-timeout-secs 5", {"drain_timeout": 5.0}),
        ("--http-max-input-size=9", {"max_request_bytes": 9}),
        ("--strict-readiness=false", {"strict_readiness": False}),
        ("--exit-on-error", {"exit_on_error": True}),
        ("--exit-on-error true --log-verbose 1", {"exit_on_error": True, "log_level": "debug"}),
        ("--log-verbose=0 --log-info=true --log-error true", {}),
        ("--log-info=false", {"log_level": "warning"}),
        ("--log-warning=0", {"log_level": "error"}),
        ("--log-format default", {}),
        ("--log-format=ISO8601", {"log_format": "ISO8601"}),
        ("--model-control-mode=explicit --load-model a --load-model=*",
         {"model_control_mode": "explicit", "load_model": ["a", "*"]}),
        ("--trace-config triton,file=t --trace-config rate=3 --trace-config level=TIMESTAMPS "
         "--trace-config triton,count=4", {"trace_file": "t", "trace_rate": 3, "trace_count": 4}),
        ("--trace-config mode=opentelemetry --trace-config opentelemetry,url=http://x:4318/v1/traces",
         {"otlp_endpoint": "http://x:4318/v1/traces"}),
        ("--cache-config local,size=1000", {"response_cache_byte_size": 1000}),
        ("--response-cache-byte-size=7", {"response_cache_byte_size": 7}),
        ("--allow-http=true --allow-grpc true --rate-limit=off --allow-sagemaker=false", {}),
        ("--model x --batch-delay-us 5", {"model": ["x"], "batch_delay_us": 5}),
    ],
)  # fmt: skip
def test_flags_with_the_same_meaning(line: str, set_: dict[str, object]) -> None:
    assert settings(line) == set_


@pytest.mark.parametrize("flag", sorted(IGNORED))
def test_flags_that_are_not_needed(flag: str) -> None:
    assert settings(f"{flag}=1") == settings(f"{flag} 1") == {}


@pytest.mark.parametrize(
    "line",
    [
        *(f"{flag}=x" for flag in sorted(REFUSED)),
        "--allow-http=false",
        "--log-error=false",
        "--rate-limit=execution_count",
        "--trace-config opentelemetry,resource=a=b",
        "--trace-config jaeger,url=x",
        "--cache-config redis,host=x",
        "--cache-config local,bytes=5",
        "--http-address=127.0.0.1 --grpc-address=0.0.0.0",
    ],
)
def test_flags_that_ask_for_what_is_not_here(line: str) -> None:
    with pytest.raises(ConfigError, match=line[: line.find("=")].partition(" ")[0]):
        translate(line.split())
