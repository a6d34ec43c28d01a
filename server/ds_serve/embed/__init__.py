"""Encoders on the CPU: embeddings, rerank, score and classes over an OpenAI-compatible socket."""
