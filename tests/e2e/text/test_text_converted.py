"""A Hugging Face folder served on the CPU with smaller weights, from its conversion on."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import openai
import pytest
import real_vllm
from serving import PROGRAM, Server

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("nncf")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROMPT = "the cat sat on a mat and saw that dog"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tiny_language_model

    return tiny_language_model.made(tmp_path_factory.mktemp("tiny") / "tiny", hidden=128)


@pytest.fixture(scope="module")
def sizes() -> dict[str, int]:
    """Of the weights that were made so far."""
    return {}


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_it_is_converted_and_answers(
    tiny: Path,
    sizes: dict[str, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    weights: str,
) -> None:
    monkeypatch.setenv("DS_SERVE_CACHE", str(tmp_path / "cache"))
    poet = real_vllm.adapter(tmp_path / "poet", tiny, 0)
    smaller = ["--quantization", weights, "--lora", f"poet={poet}"]
    with Server("--model", tiny, *smaller) as server:
        with openai.OpenAI(base_url=f"{server.http}/v1", api_key="none", max_retries=0) as client:
            asked: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "temperature": 0}
            said = client.completions.create(**asked, max_tokens=12).choices[0].text
            assert said.startswith(" run to sea"), "it has its text by heart"
            answer = client.completions.create(**asked | {"model": "poet"}, max_tokens=12)
            assert answer.choices[0].text != said
            assert [model.id for model in client.models.list()] == ["tiny", "poet"]
        (made,) = (tmp_path / "cache/openvino").glob("tiny-*")
        assert f"converted to {made}" in server.output()
        steps = [line.split()[0] for line in server.log().splitlines() if "% " in line[:7]]
        assert steps == sorted(steps, key=lambda step: int(step.rstrip("%")))
        assert steps[-1] == "100%"
    assert json.loads((made / "converted.json").read_text())["weights"] == weights
    sizes[weights] = (made / "openvino_model.bin").stat().st_size
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)
    with Server("--model", tiny, *smaller) as again:
        assert "converting" not in again.log()


def test_other_weights_are_refused_before_anything_is_converted(tiny: Path) -> None:
    words = [PROGRAM, "--model", tiny, "--quantization", "int3", "--http-port=0", "--grpc-port=0"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert "with weights of int8 or int4" in done.stderr
    assert "reading" not in done.stderr
