"""Settings that clients may change, and what comes of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from ds_engines.errors import InvalidRequest, NotFound
from ds_engines.spec import ModelSpec
from ds_serve import logs
from ds_serve.logs import LogSettings
from ds_serve.supervisor.tunables import Tunables
from ds_serve.tracing import IN_WORKER, TIMESTAMPS, Tracer, TraceSettings
from ds_serve.transport.messages import Tuning

STARTED = TraceSettings(trace_file="/t.json", trace_level=TIMESTAMPS, trace_count=5)


@pytest.fixture
def told() -> list[Tuning]:
    return []


@pytest.fixture
def tunables(told: list[Tuning]) -> Tunables:
    return Tunables(
        LogSettings.at("info", "json"), STARTED, 2, {"m", "n"}.__contains__, told.append
    )


def test_nothing_changes_where_nothing_is_asked(tunables: Tunables, told: list[Tuning]) -> None:
    assert tunables.log({}) == {
        "log_file": "", "log_info": True, "log_warning": True, "log_error": True,
        "log_verbose_level": 0, "log_format": "default",
    }  # fmt: skip
    assert tunables.trace("", {}) == {
        "trace_file": ["/t.json"], "trace_level": ["TIMESTAMPS"], "trace_rate": ["1000"],
        "trace_count": ["5"], "log_frequency": ["0"], "trace_mode": ["triton"],
    }  # fmt: skip
    assert told == []


def test_log_settings_change_and_come_back(tunables: Tunables, told: list[Tuning]) -> None:
    changed = tunables.log({"log_info": False, "log_verbose_level": 2, "log_format": "ISO8601"})
    assert (changed["log_info"], changed["log_verbose_level"], changed["log_format"]) == (
        False, 2, "ISO8601",
    )  # fmt: skip
    assert told[-1].logs == LogSettings(False, True, True, 2, "ISO8601")
    tunables.log({"log_info": None, "log_verbose_level": None, "log_format": "default"})
    assert told[-1].logs == LogSettings.at("info", "json")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"log_file": "/etc/passwd"}, "can not be updated through network protocol"),
        ({"log_inf": True}, "no log setting 'log_inf'"),
        ({"log_info": 1}, "log_info is 1; it must be true or false"),
        ({"log_verbose_level": -1}, "log_verbose_level is -1"),
        ({"log_verbose_level": True}, "log_verbose_level is True"),
        ({"log_format": "xml"}, "log_format is 'xml'"),
    ],
)
def test_log_settings_that_cannot_be(tunables: Tunables, changes: dict, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        tunables.log({"log_error": False, **changes})
    assert tunables.log({})["log_error"] is True


def test_trace_settings_of_all_and_of_one_model(tunables: Tunables, told: list[Tuning]) -> None:
    tunables.trace("", {"trace_rate": ["7"]})
    own = tunables.trace("m", {"trace_level": ["OFF"], "trace_count": ["-1"]})
    assert (own["trace_rate"], own["trace_level"], own["trace_count"]) == (["7"], ["OFF"], ["-1"])
    assert told[-1].tracing.trace_count == 3, "half of 5, rounded up"
    assert told[-1].models["m"].trace_count == -1
    tunables.trace("", {"trace_rate": None})
    assert tunables.trace("m", {})["trace_rate"] == ["1000"]
    assert tunables.trace("n", {})["trace_level"] == ["TIMESTAMPS"]
    tunables.trace("m", {"trace_level": None, "trace_count": None})
    assert told[-1].models == {}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trace_file": ["/etc/passwd"]}, "can not be updated through network protocol"),
        ({"trace_mode": ["opentelemetry"]}, "trace_mode"),
        ({"trace_level": ["TENSORS"]}, "'TENSORS' is not supported"),
        ({"trace_rate": ["0"]}, "trace_rate is 0; it must be 1 or more"),
        ({"trace_rate": ["1", "2"]}, "must be one whole number"),
        ({"trace_count": ["many"]}, "must be one whole number"),
        ({"rate": ["1"]}, "no trace setting 'rate'"),
    ],
)
def test_trace_settings_that_cannot_be(tunables: Tunables, changes: dict, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        tunables.trace("", changes)


def test_trace_settings_of_an_unknown_model(tunables: Tunables) -> None:
    with pytest.raises(NotFound, match="'o'"):
        tunables.trace("o", {})


class TestLogs:
    @pytest.fixture(autouse=True)
    def _restored(self) -> Iterator[None]:
        root = logging.getLogger()
        before = root.handlers[:], root.level
        yield
        root.handlers[:], root.level = before

    @pytest.mark.parametrize(
        ("settings", "written"),
        [
            (LogSettings.at("info", "json"), "iwe"),
            (LogSettings.at("debug", "json"), "diwe"),
            (LogSettings.at("error", "json"), "e"),
            (LogSettings(log_info=False, log_verbose_level=1, log_format="json"), "dwe"),
            (LogSettings(log_warning=False, log_error=False, log_format="json"), "i"),
            (LogSettings(False, False, False, 0, "json"), ""),
        ],
    )
    def test_each_level_is_on_or_off(
        self, settings: LogSettings, written: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        logs.apply(settings, "p")
        log = logging.getLogger("x")
        for write, letter in zip(
            (log.debug, log.info, log.warning, log.error), "diwe", strict=True
        ):
            write(letter)
        lines = [orjson.loads(line) for line in capsys.readouterr().err.splitlines()]
        assert "".join(line["message"] for line in lines if line["logger"] == "x") == written

    def test_whole_dates(self, capsys: pytest.CaptureFixture[str]) -> None:
        logs.apply(LogSettings(log_format=logs.ISO), "p")
        logging.getLogger("x").info("there")
        assert capsys.readouterr().err[:11].count("-") == 2


async def test_models_are_traced_by_their_own_settings(tmp_path: Path) -> None:
    """One in two of all, but each of m, of which two are wanted; into the file of each."""
    common = TraceSettings(str(tmp_path / "all"), TIMESTAMPS, trace_rate=2)
    tracer = Tracer(common)
    tracer.update(common, {"m": TraceSettings(str(tmp_path / "m"), TIMESTAMPS, 1, 2)})
    for number in range(10):
        for model in ("m", "n"):
            trace = tracer.begin("HTTP_RECV_START")
            assert trace is not None
            spec = ModelSpec(name=model, engine="e", artifact=Path("a"))
            trace.answered(spec, f"{model}{number}", range(len(IN_WORKER)))
            tracer.keep(trace)
    tracer.flush()
    about = {name: orjson.loads((tmp_path / name).read_bytes()) for name in ("all", "m")}
    ids = {
        name: [e["request_id"] for e in found if "request_id" in e] for name, found in about.items()
    }
    assert ids == {"all": ["n1", "n3", "n5", "n7", "n9"], "m": ["m0", "m1"]}
