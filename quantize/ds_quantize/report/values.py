"""The report as JSON, and numbers as a reader wants them."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from ds_quantize.evaluate.results import Estimate, Evaluation
    from ds_quantize.forms import Measured
    from ds_quantize.gate import Verdict

TIMES = "\N{MULTIPLICATION SIGN}"
UNITS = ("B", "kB", "MB", "GB", "TB")


def as_json(evaluation: Evaluation, verdict: Verdict, recipe: Any, measured: Measured) -> bytes:
    """All that the page shows; what is not finite is null."""
    data = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "verdict": verdict,
        "evaluation": evaluation,
        "derived": {
            "size": evaluation.size,
            "speedups": {str(batch): ratio for batch, ratio in evaluation.speedups.items()},
            "speedup": evaluation.speedup,
            "drop": evaluation.quality.drop,
        },
        "recipe": plain(recipe),
        "measured": measured,
    }
    return msgspec.json.format(msgspec.json.encode(data, enc_hook=str), indent=2)


def plain(value: Any) -> Any:
    """Dicts, lists and words of whatever msgspec can turn into them; a recipe says itself."""
    said = getattr(value, "as_data", None)
    return said() if callable(said) else msgspec.to_builtins(value, enc_hook=str)


def number(value: float) -> str:
    """Four significant digits, no exponent where it can be helped."""
    if not math.isfinite(value):
        return "-"
    if value and (abs(value) < 1e-4 or abs(value) >= 1e6):
        return f"{value:.3g}"
    digits = 4 if abs(value) < 1 else max(0, 3 - int(math.log10(abs(value) or 1)))
    return f"{value:,.{digits}f}"


def estimate(found: Estimate | None) -> str:
    """The value and its interval."""
    if found is None:
        return "-"
    return f"{number(found.value)} [{number(found.low)}, {number(found.high)}]"


def signed(found: Estimate) -> str:
    """A difference and its interval."""
    return f"{found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


def size(count: float | None) -> str:
    """Bytes, in units of 1000."""
    if count is None:
        return "-"
    value = float(count)
    for unit in UNITS:
        if abs(value) < 1000 or unit == UNITS[-1]:
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
