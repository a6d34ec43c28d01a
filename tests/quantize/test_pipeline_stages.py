"""Stages are done once for the same inputs, and never taken for finished when they are not."""

from __future__ import annotations

import io
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from ds_quantize import libraries
from ds_quantize.errors import QuantizeError
from ds_quantize.progress import Silent, reporter
from ds_quantize.stages import Stages


def make(folder: Path) -> dict[str, Any]:
    (folder / "model.onnx").write_text("model")
    return {"drop": np.float32(0.5), "rows": np.arange(3)}


def test_equal_inputs_are_done_once(tmp_path: Path) -> None:
    first = Stages(tmp_path, Silent()).run("int8", {"seed": 0, "model": "a"}, make)
    again = Stages(tmp_path, Silent()).run("int8", {"model": "a", "seed": 0}, make)
    other = Stages(tmp_path, Silent()).run("int8", {"model": "b", "seed": 0}, make)
    assert (first.reused, again.reused, other.reused) == (False, True, False)
    assert first.folder == again.folder != other.folder
    assert again.result == first.result == {"drop": 0.5, "rows": [0, 1, 2]}
    assert (again.folder / "model.onnx").read_text() == "model"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (QuantizeError("layer 'a'"), "layer 'a'"),
        (OSError(28, "No space left", "/x"), "int8: /x: No space left"),
        (RuntimeError("shape\n at 0x1"), "int8 fails on this model: RuntimeError: shape"),
    ],
)
def test_a_stage_that_fails_is_told_and_done_again(
    error: Exception, said: str, tmp_path: Path
) -> None:
    def failing(folder: Path) -> dict[str, Any]:
        (folder / "half").write_text("")
        raise error

    stages = Stages(tmp_path, Silent())
    with pytest.raises(QuantizeError) as caught:
        stages.run("int8", {}, failing)
    assert str(caught.value) == said
    done = stages.run("int8", {}, make)
    assert not done.reused
    assert not (done.folder / "half").exists()


def test_a_folder_without_a_record_is_not_taken_for_a_stage(tmp_path: Path) -> None:
    stages = Stages(tmp_path, Silent())
    done = stages.run("int8", {}, make)
    (done.folder / "stage.json").write_text("{")
    assert not stages.run("int8", {}, make).reused


def _slowly(root: Path, barrier: Any, counts: Any) -> None:
    def counted(folder: Path) -> dict[str, Any]:
        with counts.get_lock():
            counts.value += 1
        return make(folder)

    barrier.wait()
    Stages(root, Silent()).run("int8", {}, counted)


def test_two_processes_do_not_do_it_twice(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, counts = context.Barrier(2), context.Value("i", 0)
    both = [context.Process(target=_slowly, args=(tmp_path, barrier, counts)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    assert counts.value == 1


def test_a_work_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(QuantizeError, match=r"file/work cannot be written: .*--work"):
        Stages(tmp_path / "file" / "work", Silent()).run("int8", {}, make)


def test_off_a_terminal_progress_is_plain_lines(tmp_path: Path) -> None:
    text = io.StringIO()
    shown = reporter(Console(file=text, width=40))
    stages = Stages(tmp_path, shown)

    def tracked(folder: Path) -> dict[str, Any]:
        assert list(shown.track(range(3), "[rows]")) == [0, 1, 2]
        shown.say("a [long] line that is not wrapped, whatever the width of the console is")
        return make(folder)

    stages.run("int8", {}, tracked)
    Stages(tmp_path, shown).run("int8", {}, tracked)
    lines = text.getvalue().splitlines()
    assert lines[0] == "int8 ..."
    assert lines[1].startswith("a [long] line that is not wrapped, whatever the width")
    assert lines[2].startswith("int8: done in ")
    assert lines[3] == "int8: unchanged, reused"


def test_on_a_terminal_there_are_bars(tmp_path: Path) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100, color_system=None)
    shown = reporter(console)

    def tracked(folder: Path) -> dict[str, Any]:
        for at in shown.track(range(4), "[rows]"):
            if at == 3:
                shown.say("nearly")
        return make(folder)

    Stages(tmp_path, shown).run("int8", {}, tracked)
    Stages(tmp_path, shown).run("int8", {}, tracked)
    said = text.getvalue()
    assert "[rows]" in said
    assert "━" in said
    assert "nearly" in said
    assert "kept int8: unchanged, reused" in said


def test_results_of_other_code_are_not_reused() -> None:
    """What a method's own module or a neighbour says is part of a stage's key."""
    digests = {
        libraries.code(name)
        for name in ("ds_quantize.onnx_methods.fold", "ds_quantize.evaluate", "ds_quantize.gate")
    }
    assert len(digests) == 3
    assert libraries.code("ds_quantize.onnx_methods.fold") == libraries.code(
        "ds_quantize.onnx_methods.static"
    )
    assert {"numpy", "onnxruntime", "ds-serve"} <= set(libraries.versions(()))
