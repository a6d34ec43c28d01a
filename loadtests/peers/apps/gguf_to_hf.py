"""gguf_to_hf.py GGUF OUT: a Hugging Face folder in bf16, its weights those of the GGUF file.

Needs torch, transformers, gguf and accelerate. The folder's tokenizer is written by its caller:
transformers' reader of GGUF files loses the splitting of numbers into digits.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GgufConfig

source, out = Path(sys.argv[1]), Path(sys.argv[2])
model = AutoModelForCausalLM.from_pretrained(
    source.parent,
    gguf_file=source.name,
    dtype=torch.bfloat16,
    quantization_config=GgufConfig(dequantize=True),
)
# The weights are no longer quantized, and must not be saved as such.
if hasattr(model.config, "quantization_config"):
    del model.config.quantization_config
model.hf_quantizer, model.is_quantized = None, False
model.save_pretrained(out)
