"""What the pages of docs/ show is done as it stands there, on this machine's processor."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import doc_blocks
import ensembles
import onnx_models
import pytest
from doc_blocks import DATA, ROOT, SHELLS, Page
from doc_runner import Servers, Workplace
from PIL import Image

CHAT = "ds-serve --model smollm2-135m-instruct"
TRITON = (
    "import tritonclient.http as triton; client = triton.InferenceServerClient('localhost:8000')"
)
OURS = "import numpy as np; from ds_client import Client; client = Client('localhost:8001')"
EXPLICIT = "--model-control-mode explicit --open-control"

SUMS = """max_batch_size: 1
sequence_batching {
  control_input { name: "start" control {
    kind: CONTROL_SEQUENCE_START int32_false_true: [0, 1] } }
  control_input { name: "end" control { kind: CONTROL_SEQUENCE_END fp32_false_true: [0, 1] } }
  control_input { name: "ready" control {
    kind: CONTROL_SEQUENCE_READY bool_false_true: [false, true] } }
  control_input { name: "id" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } }
  state { input_name: "state" output_name: "next" data_type: TYPE_FP32 dims: [1] }
}
"""


@dataclass(frozen=True)
class Setting:
    """What a page takes for granted: files, and what it tells of in words (see Workplace)."""

    files: Callable[[Path], object] = lambda folder: None
    serves: dict[str, str] = field(default_factory=dict)
    preludes: dict[str, str] = field(default_factory=dict)


def client_files(folder: Path) -> None:
    """`mlp`, and `tracker`, which is asked in sequences."""
    onnx_models.mlp(folder / "mlp.onnx")
    onnx_models.told_sums(folder / "tracker" / "model.onnx")
    (folder / "tracker" / "config.pbtxt").write_text(SUMS)


def repository_files(folder: Path) -> None:
    """Two versions of `digits`, and a model that is in no repository."""
    for version in ("1", "2"):
        onnx_models.mlp(folder / "path/to/models/digits" / version / "model.onnx")
    onnx_models.mlp(folder / "model.onnx")


def ensemble_files(folder: Path) -> None:
    """The members, and the ensemble as the page has it."""
    ensembles.members(folder / "models")
    blocks = doc_blocks.read(doc_blocks.DOCS / "ensembles.md").blocks
    (config,) = [block.text for block in blocks if block.text.startswith('platform: "ensemble"')]
    (folder / "models/diamond").mkdir()
    (folder / "models/diamond/config.pbtxt").write_text(config)


def model_files(folder: Path) -> None:
    """Model files, and `digits` with one version."""
    for seed, name in enumerate(("models/digits/1/model", "path/to/digits", "path/to/net")):
        onnx_models.mlp(folder / f"{name}.onnx", seed=seed)


def vision_files(folder: Path) -> None:
    """A network of 10 classes, their names, and a photograph."""
    onnx_models.classifier(folder / "path/to/net.onnx")
    (folder / "path/to/labels.txt").write_text("".join(f"class {n}\n" for n in range(10)))
    Image.effect_noise((640, 480), 80).convert("RGB").save(folder / "photo.jpg")


SETTINGS = {
    "docs/client.md": Setting(
        client_files,
        {
            "import numpy": "ds-serve --model mlp.onnx --model tracker",
            "for piece": CHAT,
            "with client.pipeline": "ds-serve --model mlp.onnx --model tracker",
        },
        {
            "for piece": OURS,
            "with client.pipeline": f"{OURS}; rows = np.zeros((8, 64), np.float32)",
            "with client.sequence": f"{OURS}; chunks = np.ones((3, 1, 1), np.float32)",
        },
    ),
    "docs/ensembles.md": Setting(
        ensemble_files,
        {"client.": f"ds-serve --model-repository models {EXPLICIT}"},
        {"client.": TRITON},
    ),
    "docs/engines.md": Setting(),
    "docs/first-chat.md": Setting(),
    "docs/first-vision.md": Setting(vision_files),
    "docs/generate.md": Setting(serves={"curl ": CHAT}),
    "docs/install.md": Setting(),
    "docs/migrate-triton.md": Setting(repository_files),
    "docs/migrate-vllm.md": Setting(),
    "docs/models.md": Setting(
        model_files,
        preludes={"ds-models pull path/to/net.onnx": "export DS_SERVE_CACHE=$PWD/cache"},
    ),
    "docs/observe.md": Setting(),
    "docs/operate.md": Setting(serves={"python ": CHAT}),
    "docs/profiling.md": Setting(),
    "docs/python-backend.md": Setting(),
    "docs/repository.md": Setting(
        repository_files,
        {"curl ": f"ds-serve --model-repository path/to/models {EXPLICIT} --load-model digits"},
        {"client.": TRITON, "model =": TRITON},
    ),
    "docs/security.md": Setting(),
    "docs/text-encoders.md": Setting(),
    "docs/text-gateway.md": Setting(),
    "docs/text-openvino.md": Setting(serves={"from anthropic": CHAT}),
    "docs/tune.md": Setting(),
}
"""The pages whose blocks are run here."""

HELLO = [{"role": "user", "content": "Hello"}]
CHATTING, TENSORS = "/v1/chat/completions", "/v2/models/magika/infer"


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "smollm2-135m-instruct", "messages": HELLO, **fields}


def row(**fields: Any) -> dict[str, Any]:
    """One input to magika, of which the fields are wrong."""
    right = {"name": "bytes", "shape": [1, 2048], "datatype": "INT32", "data": [256] * 2048}
    return {"inputs": [right | fields]}


WRONG: list[tuple[str, Any]] = [
    (CHATTING, {"messages": HELLO}),
    (CHATTING, chat(model="gpt-4")),
    (CHATTING, chat(model="magika")),
    (CHATTING, chat(model="all-minilm-l6-v2")),
    (CHATTING, chat(logit_bias={"1": 2})),
    (CHATTING, chat(shout=True)),
    (CHATTING, chat(max_tokens=100_000)),
    (CHATTING, chat(tool_choice="required")),
    (CHATTING, chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}])),
    ("/v1/embeddings", chat(input="Hello")),
    ("/v1/classify", {"model": "all-minilm-l6-v2", "input": "Hello"}),
    ("/v1/realtime", chat()),
    ("/v1/nothing", {"model": "no model"}),
    ("/nothing", {}),
    ("/v2/models/nothing/infer", row()),
    ("/v2/models/magika/versions/9/infer", row()),
    (TENSORS, {}),
    (TENSORS, {"inputs": [3]}),
    (TENSORS, row(name="x")),
    (TENSORS, row(shape=[2048])),
    (TENSORS, row(data=[256])),
    (TENSORS, row(data=[[256], [256, 256]])),
    (TENSORS, row(data=["a"] * 2048)),
    (TENSORS, row(data=[1 << 40] * 2048)),
    (TENSORS, row(datatype="int32")),
    (TENSORS, row(datatype="INT64")),
    (TENSORS, row(parameters={"shared_memory_region": "r", "shared_memory_byte_size": 8})),
    (TENSORS, row() | {"outputs": [{"name": "labels"}]}),
    (TENSORS, row() | {"parameters": {"triton_x": 1}}),
    (TENSORS, row() | {"parameters": {"sequence_start": 2}}),
    ("/v2/models/smollm2-135m-instruct/generate", {"prompt": "Hello"}),
    ("/v2/repository/models/magika/load", {}),
    ("/v2/systemsharedmemory/region/r/register", {"key": "/no", "offset": 0, "byte_size": 8}),
]
"""Requests that people get wrong."""

PAGES = {page.name: page for page in doc_blocks.pages()}


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_every_block_is_run_or_says_why_not(page: Page) -> None:
    left = [] if page.run_by or page.name in SETTINGS else page.to_run()
    assert [f"{block.name}: {block.text.splitlines()[0]}" for block in left] == []
    languages = {block.language for block in page.blocks}
    assert languages <= {"", "python", *SHELLS, *DATA}, "neither a command's language nor data's"


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_what_is_said_of_a_page_is_true(page: Page) -> None:
    if page.run_by:
        assert page.path.name in (ROOT / page.run_by).read_text()
    if page.name in SETTINGS:
        assert page.to_run(), "there is nothing to run"
        assert not page.run_by
    beginnings = [
        *SETTINGS.get(page.name, Setting()).serves,
        *SETTINGS.get(page.name, Setting()).preludes,
    ]
    texts = [block.text for block in page.to_run()]
    assert [each for each in beginnings if not any(t.startswith(each) for t in texts)] == []


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_a_reason_names_tests_that_there_are(page: Page) -> None:
    reasons = " ".join([page.reason, *(block.reason for block in page.blocks)])
    named = re.findall(r"(?:tests|deploy)/[\w/.]*\w", reasons)
    assert [name for name in named if not (ROOT / name).exists()] == []
    unneeded = [block.name for block in page.blocks if block.reason and not block.kind]
    assert unneeded == [], "marked, and no command"


@pytest.mark.parametrize(
    ("text", "kind", "reason"),
    [
        ("```\ncurl localhost:8000\n```\n", "shell", ""),
        ("```sh\nwhatever\n```\n", "shell", ""),
        ("```\n$ ds-serve --model x\n```\n", "shell", ""),
        ("    ds-serve --model x\n", "shell", ""),
        ("Words:\n\n    KEY=1 ds-models list\n", "shell", ""),
        ("```python\nprint()\n```\n", "python", ""),
        ("```\nmodels/\n└── net/\n```\n", "", ""),
        ("<!-- not run: needs a GPU -->\n```\ncurl x\n```\n", "shell", "needs a GPU"),
        ("<!-- not run: no -->\nWords.\n\n```\ncurl x\n```\n", "shell", ""),
        ("<!-- not run: no -->\n\n    make docs\n", "shell", "no"),
    ],
)
def test_what_is_a_command_and_what_is_marked(text: str, kind: str, reason: str) -> None:
    (block,) = doc_blocks.blocks("page.md", text)
    assert (block.kind, block.reason) == (kind, reason)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    made = Servers(tmp_path_factory.mktemp("shared"))
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_the_commands_of_a_page(name: str, servers: Servers, tmp_path: Path) -> None:
    setting = SETTINGS[name]
    setting.files(tmp_path)
    place = Workplace(tmp_path, servers, setting.serves, setting.preludes)
    try:
        for block in PAGES[name].to_run():
            place.run(block)
    finally:
        place.close()


@pytest.mark.slow
@pytest.mark.parametrize(("path", "body"), WRONG)
def test_the_error_is_found_in_troubleshoot(path: str, body: Any, servers: Servers) -> None:
    server = servers.shared()
    answer = server.client.post(f"{server.http}{path}", json=body)
    assert answer.status_code >= 400
    error = answer.json()["error"]
    said = error["message"] if isinstance(error, dict) else error
    assert any(pattern.search(said) for pattern in doc_blocks.troubleshooting()), said
