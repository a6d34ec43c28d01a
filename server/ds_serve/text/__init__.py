"""The CPU text worker: OpenAI's HTTP API on a Unix socket, and the engine loop behind it."""
