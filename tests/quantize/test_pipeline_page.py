"""What docs/quantize.md shows works as it is written."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from quantizing import call, environment, workshop

from ds_quantize import recipe
from ds_quantize.cli import COMMANDS, parser
from ds_quantize.evaluate.metrics import NAMES
from ds_quantize.limits import Gate
from ds_serve import cli as serve

PAGE = (Path(__file__).parents[2] / "docs" / "quantize.md").read_text()
PROGRAM = Path(sys.executable).with_name("ds-quantize")
QUICK = ["--threads", "1", "--seconds", "0.02"]


def blocks(kind: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return [text for each, text in found if each == kind]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = workshop(tmp_path_factory.mktemp("page"))
    (made.folder / "cal.npz").rename(made.folder / "calibration.npz")
    (made.folder / "eval.npz").rename(made.folder / "evaluation.npz")
    return made.folder


@pytest.mark.slow
def test_the_commands(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_SERVE_CACHE", str(folder / "cache"))
    lines = [line for block in blocks("") for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("ds-quantize ")]
    # These need PyTorch, and models that are trained; they have tests of their own.
    commands = [words for words in commands if words[0] not in ("export", "cascade")]
    commands = [words for words in commands if not any(w.startswith("llm-") for w in words)]
    assert len(commands) >= 5
    for words in commands:
        # A net of this size, with labels of its own making, keeps no strict limit.
        loose = ["--limit", "max_accuracy_drop=0.2", "--limit", "min_agreement=0.5"]
        more = [*QUICK, *loose] if "-o" in words else QUICK if "compare" in words else []
        done = call([str(PROGRAM), *words, *more], folder)
        assert done.returncode == 0, (words, done.stdout + done.stderr)


@pytest.mark.slow
def test_the_python(folder: Path) -> None:
    example = next(text for text in blocks("python") if "import ds_quantize" in text)
    (folder / "page.py").write_text(example.replace('"int8"', '"./loose.yaml"'))
    (folder / "loose.yaml").write_text("extends: int8\ngate: {max_accuracy_drop: 0.2}\n")
    cache = {"DS_SERVE_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "page.py"],
        cwd=folder,
        env=environment() | cache,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "quantized.onnx").stat().st_size < (folder / "net.onnx").stat().st_size


def test_the_recipe(tmp_path: Path) -> None:
    example = next(text for text in blocks("yaml") if text.startswith("extends: int8"))
    (tmp_path / "mine.yaml").write_text(example)
    made = recipe.load(str(tmp_path / "mine.yaml"))
    assert [step.name for step in made.steps] == ["fold", "int8-static"]


def test_all_limits_metrics_and_commands_are_on_the_page() -> None:
    assert set(re.findall(r"^\| `((?:max|min)_\w+)` \|", PAGE, re.MULTILINE)) == set(
        Gate.__struct_fields__
    )
    for name in re.findall(r"[a-z]+(?:-[a-z]+)+|mse|agreement|cosine", NAMES):
        assert f"`{name}" in PAGE, name
    assert {name for name in COMMANDS if f"ds-quantize {name}" not in PAGE} <= {"run"}


def test_what_the_page_says_of_flags_exists() -> None:
    flags = set(re.findall(r"`(--[a-z-]+)", PAGE))
    known = serve.parser().format_help() + "".join(
        sub.format_help()
        for sub in parser()._subparsers._group_actions[0].choices.values()  # type: ignore[union-attr]
    )
    assert {flag for flag in flags if flag not in known} == set()


def test_help_is_given_without_the_libraries() -> None:
    code = "import sys; sys.modules['onnx'] = None; from ds_quantize.cli import main; main(['-h'])"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_a_library_that_is_missing_is_named_with_its_extra(tmp_path: Path) -> None:
    made = workshop(tmp_path)
    code = (
        "import sys; sys.modules['onnx'] = None; from ds_quantize.cli import main; "
        f"sys.exit(main({made.words()[3:]!r}))"
    )
    done = call([sys.executable, "-c", code], tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "ds-quantize: run needs 'onnx': pip install \"ds-serve[quantize]\""
    )
