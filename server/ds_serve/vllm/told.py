"""What vLLM's log lines tell: how far its start-up is, and why it failed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

_PREFIX = re.compile(
    r"^(?:\((?P<process>[\w-]+)[^)]*\) )?"
    r"(?:(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL) [\d-]+ [\d:]+ (?:\[[^\]]*\] ?)?)?"
)
_PERCENT = re.compile(r"(\d{1,3})%")

STARTED = "Application startup complete"
"""What uvicorn logs once it answers."""


class Line(NamedTuple):
    """One line, without what vLLM sets before it; `level` is "" where it has none."""

    level: str
    text: str


def read(line: str) -> Line:
    found = _PREFIX.match(line)
    assert found is not None, "all of it is optional"
    return Line(found["level"] or "", line[found.end() :].rstrip())


_STEPS: Sequence[tuple[re.Pattern[str], str]] = [
    (re.compile(pattern), said)
    for pattern, said in (
        (r"^Fetching \d+ files", "downloading"),
        (r"^(Downloading )?[\w.-]+\.(safetensors|bin|json|gguf|model|pt)\b.*\d+%", "downloading"),
        (r"^Resolved architecture", "starting the engine"),
        (r"Starting to load model", "loading weights"),
        (r"^Loading \S+ checkpoint shards", "loading weights"),
        (r"^Loading weights took", "preparing the engine"),
        (r"cache directory.*torch\.compile|^Dynamo bytecode|Compiling a graph", "compiling"),
        (r"torch\.compile takes|^init engine", "starting the server"),
        (r"^Warming up model for the compilation", "compiling"),
        (r"^(?:\S+ ){0,4}[Aa]utotuning", "tuning kernels"),
        (r"^Capturing CUDA graph", "capturing graphs"),
        (r"^Graph capturing finished", "starting the server"),
        (r"^Starting vLLM (API )?server", "starting the server"),
    )
]


def step(text: str) -> str:
    """Which step of the start-up a line tells of, with percent where it has them; or ""."""
    for pattern, said in _STEPS:
        if pattern.search(text):
            percent = _PERCENT.search(text)
            return f"{said}, {percent[1]} %" if percent else said
    return ""


FACTS: Sequence[re.Pattern[str]] = [
    re.compile(r"KV cache size: [\d,]+ tokens.*"),
    re.compile(r"Model loading took .*"),
    re.compile(r"Graph capturing finished in .*"),
    re.compile(r"init engine .* took .*"),
]


def fact(text: str) -> str:
    """What of a line an operator wants to know in any case; "" where nothing."""
    return next((found[0] for each in FACTS if (found := each.search(text))), "")


class Failure(NamedTuple):
    """`permanent`: the next start would fail in the same way."""

    reason: str
    permanent: bool


_OUT_OF_MEMORY = re.compile(r"(?:CUDA|HIP) out of memory\. ?(.*?)(?:\. Of the allocated|\. If |$)")
_CPU_MEMORY = re.compile(r"DefaultCPUAllocator: (?:can't|not enough).*|MemoryError.*")
_TOO_LONG = re.compile(r"max seq len \(?(\d+)\)?.*", re.IGNORECASE)
_LONGEST = re.compile(r"maximum model length is (\d+)")
_NO_CACHE = re.compile(r"No available memory for the cache blocks")
_BUSY = re.compile(
    r"Free memory on device .*?is less than desired GPU memory utilization[^.]*\.?\d*"
)
_ARCHITECTURE = re.compile(r"Model architectures (\[.*?\]) are not supported")
_INSPECTED = re.compile(r"Model architectures (\[.*?\]) failed to be inspected")
_LACKS = re.compile(r"ModuleNotFoundError: No module named '([\w.]+)'")
_USAGE = re.compile(
    r"^(?:\S+\.py|vllm|vllm serve): error: (.*)|(?:^|: )(unrecognized arguments: .*)"
)
_NO_MODULE = re.compile(r"No module named '?(vllm[\w.]*)'?$")
_NOT_FOUND = re.compile(r"(\S+) is not a local folder and is not a valid model identifier")
_OFFLINE = re.compile(
    r"(LocalEntryNotFoundError|OfflineModeIsEnabled|couldn't connect to '?https?://\S+)"
)
_GATED = re.compile(r"(GatedRepoError|Cannot access gated repo|401 Client Error)")
_VALUE = re.compile(r"Value error, (.*?)(?: \[type=|$)")
_EXCEPTION = re.compile(r"^(?:[\w.]+\.)?([A-Z]\w*(?:Error|Exception))\b: (.+)")
_DIED = re.compile(
    r"(?:Worker proc|Engine core proc(?:ess)?) (\S+) died unexpectedly(?: \(exit code: (-?\d+)\))?"
)
_ENGINE_DEAD = re.compile(r"EngineDeadError|EngineCore encountered an issue")
_GENERIC = re.compile(
    r"Engine core initialization failed|See root cause above|EngineDeadError|EngineCore encountered"
    r"|WorkerProc initialization failed|cancelled|Executor failed"
)


def failure(lines: Sequence[str]) -> Failure | None:
    """Why it failed, by its last lines as `read` gives them; None where they do not tell."""
    for look in (_memory, _usage, _model, _root_cause, _death):
        if found := look(lines):
            return found
    return None


def is_fatal(text: str) -> bool:
    """Whether a line says that the engine is gone, so that its reason is to be kept."""
    return any(each.search(text) for each in (_OUT_OF_MEMORY, _DIED, _ENGINE_DEAD))


def _first(pattern: re.Pattern[str], lines: Sequence[str]) -> re.Match[str] | None:
    return next((found for line in lines if (found := pattern.search(line))), None)


def _memory(lines: Sequence[str]) -> Failure | None:
    helps = "--memory-efficient, a lower --max-seq-len, a quantized model or --tensor-parallel help"
    if found := _first(_OUT_OF_MEMORY, lines):
        return Failure(f"the GPU's memory is full: {found[1].strip()}; {helps}", False)
    if found := _first(_CPU_MEMORY, lines):
        return Failure(f"there is not enough memory: {found[0].strip()}", False)
    if found := _first(_BUSY, lines):
        return Failure(f"the GPU's memory is in use: {found[0]}", False)
    if longest := _first(_LONGEST, lines):
        asked = _first(_TOO_LONG, lines)
        tokens = f" of {asked[1]} tokens" if asked else ""
        return Failure(
            f"the KV cache has no room for one sequence{tokens}: give --max-seq-len {longest[1]} "
            "or less",
            True,
        )
    if _first(_NO_CACHE, lines):
        return Failure(f"no memory is left for the KV cache beside the weights: {helps}", True)
    return None


def _usage(lines: Sequence[str]) -> Failure | None:
    if found := _first(_USAGE, lines):
        return Failure(f"vLLM refuses its flags: {found[1] or found[2]}", True)
    if found := _first(_NO_MODULE, lines):
        return Failure(f"there is no {found[1]}: pip install 'ds-serve[vllm]'", True)
    return None


def _model(lines: Sequence[str]) -> Failure | None:
    if found := _first(_ARCHITECTURE, lines):
        return Failure(f"this vLLM does not know the model's architecture {found[1]}", True)
    if (found := _first(_INSPECTED, lines)) and (lacks := _first(_LACKS, lines)):
        return Failure(f"the architecture {found[1]} needs the package {lacks[1]}", True)
    if _first(_GATED, lines):
        return Failure("the model hub asks for a token: set HF_TOKEN to one that may read it", True)
    if found := _first(_NOT_FOUND, lines):
        return Failure(f"the model hub has no model {found[1]}, and there is no such folder", True)
    if found := _first(_OFFLINE, lines):
        return Failure(
            "the model hub cannot be reached, and its cache here has not all of the model: give a "
            "folder, or fetch it where the hub can be reached",
            False,
        )
    return None


def _root_cause(lines: Sequence[str]) -> Failure | None:
    """The first exception that is no mere consequence of another."""
    if found := _first(_VALUE, lines):
        return Failure(_short(found[1]), True)
    exceptions = [found for line in lines if (found := _EXCEPTION.match(line))]
    chosen = next((found for found in exceptions if not _GENERIC.search(found[0])), None)
    if chosen is None:
        return None
    return Failure(_short(f"{chosen[1]}: {chosen[2]}"), chosen[1] in ("ValueError", "KeyError"))


def _death(lines: Sequence[str]) -> Failure | None:
    if found := _first(_DIED, lines):
        how = f" with exit code {found[2]}" if found[2] else ""
        hint = ": perhaps the kernel killed it for want of memory" if found[2] == "-9" else ""
        return Failure(f"vLLM's process {found[1]} died{how}{hint}", False)
    if _first(_ENGINE_DEAD, lines):
        return Failure("vLLM's engine died without a word", False)
    return None


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 500 else text[:497] + "..."
