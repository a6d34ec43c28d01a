"""Models that see and hear: small ones of known architectures, without weights.

They say nothing sensible, but everything between a client's picture or sound and the model runs:
the upload, the processor, the encoder, the text that comes out.
"""

from __future__ import annotations

import base64
import io
import json
import math
import struct
import wave
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loadtests.perf_analyzer import BenchmarkError
from loadtests.vllm import asking, shapes
from loadtests.vllm.plan import Plan
from loadtests.vllm.servers import Running, ds_serve

SIDE, PATCH = 56, 14
IMAGE_TOKEN = "<filename>"
"""A special token of SmolLM2's that stands for nothing here."""

MEL = 80
TEXT: dict[str, Any] = shapes.LLAMA | shapes.SIZES["tiny"] | {"max_position_embeddings": 4096}
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
    "projection_dim": 64,
    "vocab_size": 1000,
}
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}{{ '" + IMAGE_TOKEN + "' }}"
    "{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def run(plan: Plan) -> dict[str, Any]:
    kinds = []
    for make, ask in ((llava, see), (whisper, hear)):
        kinds.append(_tried(plan, make, ask))
    return {"kinds": kinds}


def _tried(
    plan: Plan,
    make: Callable[[Plan], tuple[Path, str, str, list[str]]],
    ask: Callable[[Running, str], str],
) -> dict[str, Any]:
    folder, what, architecture, flags = make(plan)
    flags = ["--load-format", "dummy", "--enforce-eager", *flags]
    if plan.place.device == "cuda":
        flags += ["--gpu-memory-utilization", "0.3"]
    found: dict[str, Any] = {"input": what, "architecture": architecture}
    try:
        with ds_serve(plan.place, folder.name, folder, (), flags) as server:
            said = ask(server, folder.name)
            return found | {"good": True, "said": said, "start_s": round(server.started, 1)}
    except (BenchmarkError, asking.Refused, OSError, KeyError) as error:
        return found | {"good": False, "said": str(error)[-1500:]}


def llava(plan: Plan) -> tuple[Path, str, str, list[str]]:
    """CLIP's vision encoder before a Llama, as LLaVA 1.5 joins them."""
    folder = plan.place.out / "tiny-llava"
    shapes.copy_tokenizer(plan.tokenizer, folder)
    _write(
        folder / "config.json",
        {
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "llava",
            "text_config": TEXT,
            "vision_config": CLIP,
            "image_token_index": _id(folder, IMAGE_TOKEN),
            "image_seq_length": (SIDE // PATCH) ** 2,
            "projector_hidden_act": "gelu",
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
            "torch_dtype": "bfloat16",
            "tie_word_embeddings": False,
        },
    )
    images = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": SIDE},
        "do_center_crop": True,
        "crop_size": {"height": SIDE, "width": SIDE},
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.48, 0.46, 0.41],
        "image_std": [0.27, 0.26, 0.28],
    }
    _write(folder / "preprocessor_config.json", images | {"processor_class": "LlavaProcessor"})
    _write(
        folder / "processor_config.json",
        {
            "processor_class": "LlavaProcessor",
            "image_token": IMAGE_TOKEN,
            "patch_size": PATCH,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
        },
    )
    _set_template(folder)
    return folder, "picture", "LlavaForConditionalGeneration", ["--max-model-len", "1024"]


def see(server: Running, name: str) -> str:
    picture = "data:image/png;base64," + base64.b64encode(_png(SIDE)).decode()
    body = {
        "model": name,
        "max_tokens": 8,
        "temperature": 0,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": picture}},
                    {"type": "text", "text": "What is this?"},
                ],
            }
        ],
    }
    answer = asking.post(server.port, "/v1/chat/completions", body)
    tokens = answer["usage"]["prompt_tokens"]
    patches = (SIDE // PATCH) ** 2
    if tokens < patches:
        raise BenchmarkError(f"the prompt has {tokens} tokens, but the picture alone {patches}")
    return f"{answer['usage']['completion_tokens']} tokens for a prompt of {tokens}"


def whisper(plan: Plan) -> tuple[Path, str, str, list[str]]:
    """Whisper's encoder and decoder, small; its special tokens are added to SmolLM2's."""
    folder = plan.place.out / "tiny-whisper"
    shapes.copy_tokenizer(plan.tokenizer, folder)
    first = shapes.SIZES["tiny"]["vocab_size"]
    languages = ("en", "de", "fr", "es")
    special = ["<|startoftranscript|>", *(f"<|{each}|>" for each in languages), "<|translate|>"]
    special += ["<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>"]
    special += ["<|notimestamps|>", *(f"<|{at / 50:.2f}|>" for at in range(1501))]
    ids = {token: first + at for at, token in enumerate(special)}
    _add_tokens(folder, ids)
    config = {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "d_model": 64,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 1,
        "decoder_attention_heads": 1,
        "encoder_ffn_dim": 128,
        "decoder_ffn_dim": 128,
        "num_mel_bins": MEL,
        "max_source_positions": 1500,
        "max_target_positions": 448,
        "vocab_size": first + len(special),
        "activation_function": "gelu",
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "decoder_start_token_id": ids["<|startoftranscript|>"],
        "is_encoder_decoder": True,
        "torch_dtype": "bfloat16",
    }
    _write(folder / "config.json", config)
    _write(
        folder / "generation_config.json",
        {
            "decoder_start_token_id": ids["<|startoftranscript|>"],
            "eos_token_id": 0,
            "lang_to_id": {f"<|{each}|>": ids[f"<|{each}|>"] for each in languages},
            "task_to_id": {each: ids[f"<|{each}|>"] for each in ("transcribe", "translate")},
            "no_timestamps_token_id": ids["<|notimestamps|>"],
            "is_multilingual": True,
        },
    )
    _write(
        folder / "preprocessor_config.json",
        {
            "feature_extractor_type": "WhisperFeatureExtractor",
            "processor_class": "WhisperProcessor",
            "feature_size": MEL,
            "sampling_rate": 16000,
            "hop_length": 160,
            "chunk_length": 30,
            "n_fft": 400,
            "padding_value": 0.0,
            "padding_side": "right",
            "return_attention_mask": False,
        },
    )
    return folder, "sound", "WhisperForConditionalGeneration", ["--max-model-len", "448"]


def hear(server: Running, name: str) -> str:
    fields = {"model": name, "language": "en", "temperature": "0", "max_completion_tokens": "8"}
    answer = asking.upload(server.port, "/v1/audio/transcriptions", fields, _wav(2.0), "sound.wav")
    return f"a transcription of {len(answer['text'])} characters for 2 s of sound"


def _set_template(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    _write(file, json.loads(file.read_text()) | {"chat_template": TEMPLATE})


def _add_tokens(folder: Path, ids: dict[str, int]) -> None:
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokenizer["added_tokens"] += [
        {"id": number, "content": token, "special": True, **plain} for token, number in ids.items()
    ]
    _write(file, tokenizer)
    settings = folder / "tokenizer_config.json"
    _write(
        settings,
        {
            "tokenizer_class": "WhisperTokenizer",
            "bos_token": "<|endoftext|>",
            "eos_token": "<|endoftext|>",
            "unk_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": 448,
        },
    )


def _id(folder: Path, token: str) -> int:
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    return next(int(each["id"]) for each in added if each["content"] == token)


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1))


def _png(side: int) -> bytes:
    """A square of colours."""
    rows = b"".join(
        b"\0" + bytes(value for x in range(side) for value in (4 * x % 256, 4 * y % 256, 128))
        for y in range(side)
    )

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def _wav(seconds: float, rate: int = 16_000) -> bytes:
    """A tone of 440 Hz."""
    file = io.BytesIO()
    samples = (
        round(12_000 * math.sin(2 * math.pi * 440 * at / rate))
        for at in range(round(seconds * rate))
    )
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        sound.writeframes(b"".join(struct.pack("<h", sample) for sample in samples))
    return file.getvalue()
