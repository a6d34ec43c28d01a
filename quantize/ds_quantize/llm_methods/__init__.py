"""Handlers of the methods on Hugging Face folders, over llm-compressor."""

import logging
import os

# Here, as these libraries speak up as soon as they are imported.
os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "CRITICAL")
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
