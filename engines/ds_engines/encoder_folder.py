"""What a Hugging Face folder says of an encoder: what it gives, and how that is made of its states.

A folder is a plain one (`config.json`, weights, `tokenizer.json`), or one of sentence-transformers,
whose `modules.json` names the steps after the encoder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from ds_engines.errors import ConfigError, LoadError

Activation = Literal["identity", "sigmoid", "softmax"]

CLASSIFIER = "ForSequenceClassification"
GRAPHS = ("openvino/openvino_model.xml", "openvino_model.xml", "onnx/model.onnx", "model.onnx")
"""Files that hold the whole model, by preference."""

POOLINGS = ("mean", "cls", "max", "lasttoken", "mean_sqrt_len_tokens", "weightedmean")

WEIGHTS = "model.safetensors"
INDEX = WEIGHTS + ".index.json"

BUILT = ("bert", "electra", "roberta", "xlm-roberta", "camembert", "mpnet", "distilbert")
"""Model types whose network is made from their weights alone."""
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish", "tanh")
"""Those that a network made so may have inside."""

_MODULES = "modules.json"
_LIMITS = "sentence_bert_config.json"
_MOST_TOKENS = 1 << 20
"""Tokenizers without a limit say a huge number."""

_SPELLINGS = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max"}


class Dense(NamedTuple):
    """A layer after pooling; `folder` has its weights."""

    folder: Path
    tanh: bool


class EncoderInfo(msgspec.Struct, frozen=True):
    """One encoder. `labels` are those of a classifier, () for one that gives vectors, of which
    `activation` makes probabilities and `pooling`, `dense` and `normalize` make a vector.

    `max_seq_len` is in tokens, what the folder asks for; `positions` is what the network has
    places for, 0 where that is not known. `matryoshka` are the lengths that a vector may be cut
    to; () for none, (0,) for any. `types` is how many texts it tells apart that it reads together.
    `graph` is a file with the whole network, if there is one.
    """

    folder: Path
    config: dict[str, Any]
    architecture: str
    labels: tuple[str, ...]
    activation: Activation
    pooling: tuple[str, ...]
    dense: tuple[Dense, ...]
    normalize: bool
    max_seq_len: int
    positions: int
    matryoshka: tuple[int, ...]
    lower: bool
    types: int
    graph: Path | None

    @property
    def classifies(self) -> bool:
        return bool(self.labels)


def read(folder: Path, max_seq_len: int = 0) -> EncoderInfo:
    """What the folder says. `max_seq_len` takes the place of its own limit where it is not 0.

    Raises LoadError for a folder that is no encoder's, ConfigError where it has no places for
    `max_seq_len` tokens.
    """
    config = read_json(folder / "config.json")
    architecture = _architecture(folder, config)
    classifies = architecture.endswith(CLASSIFIER)
    steps = [] if classifies else _steps(folder)
    limits = read_json(folder / _LIMITS, missing=True)
    positions = _positions(config)
    return EncoderInfo(
        folder=folder,
        config=config,
        architecture=architecture,
        labels=_labels(config) if classifies else (),
        activation=_activation(config) if classifies else "identity",
        pooling=_pooling(folder, steps),
        dense=tuple(_dense(folder / step["path"]) for step in steps if step["kind"] == "Dense"),
        normalize=not steps or any(step["kind"] == "Normalize" for step in steps),
        max_seq_len=_limit(folder, limits, positions, max_seq_len),
        positions=positions,
        matryoshka=_matryoshka(config),
        lower=bool(limits.get("do_lower_case")),
        types=_types(folder, config),
        graph=next((folder / name for name in GRAPHS if (folder / name).is_file()), None),
    )


def needs_export(folder: Path) -> str:
    """Why the folder must be converted with PyTorch first; empty where it can be run as it is.

    Raises LoadError for a config.json that cannot be read.
    """
    if any((folder / name).is_file() for name in GRAPHS):
        return ""
    if not files(folder):
        return "there is no model.safetensors in it"
    config = read_json(folder / "config.json")
    kind = str(config.get("model_type"))
    if kind not in BUILT:
        return f"model_type {kind!r} is none of {', '.join(BUILT)}"
    if config.get("position_embedding_type", "absolute") != "absolute":
        return f"position_embedding_type is {config['position_embedding_type']!r}"
    activation = config.get("hidden_act", config.get("activation", "gelu"))
    if activation not in ACTIVATIONS:
        return f"its activation is {activation!r}"
    return "is_decoder is set" if config.get("is_decoder") else ""


def files(folder: Path) -> list[Path]:
    """The safetensors files of a Hugging Face folder; none where there is no whole set."""
    if (folder / INDEX).is_file():
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            names = sorted({Path(name).name for name in index["weight_map"].values()})
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise LoadError(f"{folder / INDEX} cannot be read: {error!r:.200}") from None
        return [folder / name for name in names]
    return [path for path in (folder / WEIGHTS,) if path.is_file()]


def read_json(path: Path, missing: bool = False) -> dict[str, Any]:
    """A JSON object; an empty one for a file that may be `missing`. Raises LoadError."""
    if missing and not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise LoadError(f"{path} holds no JSON object")
    return found


def _architecture(folder: Path, config: dict[str, Any]) -> str:
    found = config.get("architectures")
    if isinstance(found, list) and found and isinstance(found[0], str):
        return found[0]
    raise LoadError(f"{folder / 'config.json'} names no architectures")


def _labels(config: dict[str, Any]) -> tuple[str, ...]:
    """By id. Transformers writes none where they are the two usual ones."""
    named = config.get("id2label")
    if isinstance(named, dict) and named:
        return tuple(str(named.get(str(i), f"LABEL_{i}")) for i in range(len(named)))
    return tuple(f"LABEL_{i}" for i in range(int(config.get("num_labels", 2))))


def _activation(config: dict[str, Any]) -> Activation:
    """As sentence-transformers and Transformers choose it."""
    ours = config.get("sentence_transformers") or {}
    named = ours.get("activation_fn") or config.get("sbert_ce_default_activation_function")
    if named:
        kind = str(named).rpartition(".")[2].lower()
        if kind in ("identity", "sigmoid", "softmax"):
            return kind  # type: ignore[return-value]
        raise LoadError(f"config.json names the activation {named}; identity and sigmoid are known")
    kinds: dict[str, Activation] = {
        "regression": "identity",
        "multi_label_classification": "sigmoid",
        "single_label_classification": "softmax",
    }
    usual: Activation = "sigmoid" if len(_labels(config)) == 1 else "softmax"
    return kinds.get(str(config.get("problem_type")), usual)


def _steps(folder: Path) -> list[dict[str, Any]]:
    """sentence-transformers' modules, each with its `kind` and `path`; none in a plain folder."""
    path = folder / _MODULES
    if not path.is_file():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        steps = [{"kind": _kind(each["type"]), "path": str(each["path"])} for each in found]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadError(f"{path} cannot be read: {error!r}") from None
    known = ("Transformer", "Pooling", "Dense", "Normalize", "Dropout")
    for step in steps:
        if step["kind"] not in known:
            raise LoadError(f"{path} has a module {step['kind']!r}; known are {', '.join(known)}")
    return steps


def _kind(name: Any) -> str:
    return str(name).rpartition(".")[2]


def _pooling(folder: Path, steps: list[dict[str, Any]]) -> tuple[str, ...]:
    """One way, or several whose vectors are put side by side."""
    path = next((folder / step["path"] for step in steps if step["kind"] == "Pooling"), None)
    if path is None or not (path / "config.json").is_file():
        return ("mean",)
    said = read_json(path / "config.json")
    modes = said.get("pooling_mode") or [
        key.removeprefix("pooling_mode_")
        for key, value in said.items()
        if key.startswith("pooling_mode_") and value
    ]
    modes = [modes] if isinstance(modes, str) else modes
    found = tuple(_SPELLINGS.get(str(mode), str(mode)) for mode in modes)
    for mode in found:
        if mode not in POOLINGS:
            raise LoadError(f"{path} asks for pooling {mode!r}; known are {', '.join(POOLINGS)}")
    return found or ("mean",)


def _dense(folder: Path) -> Dense:
    said = read_json(folder / "config.json")
    kind = str(said.get("activation_function", "Tanh")).rpartition(".")[2]
    if kind not in ("Tanh", "Identity"):
        raise LoadError(f"{folder} has activation {kind!r}; known are Tanh and Identity")
    return Dense(folder, kind == "Tanh")


def _positions(config: dict[str, Any]) -> int:
    """Those of RoBERTa's family begin after the padding's."""
    found = int(config.get("max_position_embeddings") or 0)
    offset = str(config.get("model_type")) in ("roberta", "xlm-roberta", "camembert", "mpnet")
    return found - int(config.get("pad_token_id", 1)) - 1 if found and offset else found


def _types(folder: Path, config: dict[str, Any]) -> int:
    names = read_json(folder / "tokenizer_config.json", missing=True).get("model_input_names")
    if isinstance(names, list) and "token_type_ids" not in names:
        return 1
    return max(1, int(config.get("type_vocab_size") or 1))


def _limit(folder: Path, limits: dict[str, Any], positions: int, wanted: int) -> int:
    if wanted and positions and wanted > positions:
        raise ConfigError(
            f"--max-seq-len {wanted}: the network in {folder} has places for {positions} tokens"
        )
    said = read_json(folder / "tokenizer_config.json", missing=True).get("model_max_length")
    own = [
        int(value)
        for value in (limits.get("max_seq_length"), said, positions)
        if isinstance(value, int | float) and 0 < value <= _MOST_TOKENS
    ]
    return wanted or min(own, default=512)


def _matryoshka(config: dict[str, Any]) -> tuple[int, ...]:
    lengths = config.get("matryoshka_dimensions")
    if isinstance(lengths, list) and lengths:
        return tuple(int(length) for length in lengths)
    return (0,) if config.get("is_matryoshka") else ()
