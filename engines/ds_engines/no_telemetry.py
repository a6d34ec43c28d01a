"""OpenVINO's tools report how they are used to Google Analytics; ours stay silent."""

from __future__ import annotations

import contextlib
from importlib import import_module


def decline() -> None:
    """Answer their question for consent with no, in this process; call it before importing NNCF.

    The answer that a user keeps in the home folder is not touched.
    """
    with contextlib.suppress(ImportError):
        checker = import_module("openvino_telemetry.utils.opt_in_checker")
        declined = checker.ConsentCheckResult.DECLINED
        checker.OptInChecker.check = lambda *_, **__: declined
