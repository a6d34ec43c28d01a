"""Manifests as `ds-quantize` writes them, for versions that tests have made otherwise."""

from __future__ import annotations

from pathlib import Path

from ds_engines import manifest
from ds_engines.manifest import DataSets, Judgement, Manifest, Source

WHY = "accuracy fell by 0.2; 0.01 is allowed"
"""The reason of a version that did not pass."""


def judge(version: Path, *, passed: bool = True) -> Path:
    """Write the manifest of the files that lie in a version's folder; that folder."""
    manifest.write(
        version,
        Manifest(
            created="2026-11-01T12:00:00Z",
            source=Source("net.onnx", "0" * 64),
            recipe={"name": "int8", "steps": [{"method": "int8-static"}]},
            libraries={"onnxruntime": "1.30.0"},
            data=DataSets(),
            files=manifest.listing(version),
            measured={},
            gate=Judgement(passed, reasons=[] if passed else [WHY]),
        ),
    )
    return version


def tamper(version: Path) -> None:
    """Change a byte of the model's weights, and nothing by which a change is noticed cheaply."""
    file = version / "model.onnx"
    data = bytearray(file.read_bytes())
    data[-200] ^= 1
    file.write_bytes(data)
