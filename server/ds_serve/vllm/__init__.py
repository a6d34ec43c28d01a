"""vLLM as a text worker: which one is installed, how it is started, kept, and understood."""
