"""A language model of two small layers with a text by heart, as a Hugging Face folder."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "saw", "that", "dog", "run", "to", "sea")
STEPS = 40
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def lines(count: int, seed: int = 0) -> list[str]:
    """Texts of two dozen words each, which follow one another in the same order."""
    pick = random.Random(seed)
    starts = [pick.randrange(len(WORDS)) for _ in range(count)]
    return [" ".join(WORDS[(at + i) % len(WORDS)] for i in range(24)) for at in starts]


def made(folder: Path, hidden: int = 64) -> Path:
    """Write the model; `hidden` is the width of its layers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=alphabet,
        special_tokens=["<s>", "</s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines(40), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    model = LlamaForCausalLM(_config(tokenizer.get_vocab_size(), hidden))
    _learn(model, [torch.tensor([fast(line)["input_ids"]]) for line in lines(len(WORDS))])
    model.save_pretrained(folder)
    return folder


def _learn(model: LlamaForCausalLM, texts: list[torch.Tensor]) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(STEPS):
        ids = texts[step % len(texts)]
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def _config(words: int, hidden: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=words,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
