"""What ds-serve with vLLM does on a machine with GPUs, beside vLLM alone."""
