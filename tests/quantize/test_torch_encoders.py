"""An encoder that is not of BERT's family, converted once: it answers as Transformers does."""

from __future__ import annotations

import json
from pathlib import Path

import encoder_folders
import numpy as np
import pytest

from ds_engines import encoder_folder
from ds_engines.encoder import EncoderEngine
from ds_engines.encoder_tokens import EncoderTokenizer
from ds_serve.text.convert import ENCODER, openvino_folder

TEXTS = ["the cat sat on the mat", "a dog", " ".join(["the bird ran"] * 12)]


class Notes:
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.slow
@pytest.mark.timeout(900)  # PyTorch alone takes a minute to import
def test_modernbert_answers_as_transformers_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_SERVE_CACHE", str(tmp_path / "cache"))
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "model"
    torch.manual_seed(7)
    config = transformers.AutoConfig.for_model(
        "modernbert", num_labels=3, vocab_size=len(encoder_folders.VOCABULARY), hidden_size=16,
        num_hidden_layers=3, num_attention_heads=2, intermediate_size=24, local_attention=8,
        global_attn_every_n_layers=2, max_position_embeddings=64, pad_token_id=1,
        cls_token_id=0, sep_token_id=2, bos_token_id=0, eos_token_id=2, initializer_range=0.5,
    )  # fmt: skip
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(encoder_folders.tokenizer()))
    notes = Notes()
    made = openvino_folder(folder, notes, ENCODER)
    assert any("100% done" in said for said in notes.said)
    assert openvino_folder(folder, Notes(), ENCODER) == made
    info = encoder_folder.read(made)
    rows = EncoderTokenizer(info).encode(TEXTS)
    found = EncoderEngine(info, threads=1).run(rows)
    with torch.inference_mode():
        expected = [model(torch.tensor([row.ids])).logits[0].numpy() for row in rows]
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-3)
