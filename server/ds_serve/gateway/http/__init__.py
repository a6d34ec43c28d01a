"""HTTP: the OpenAI routes, KServe v2, health and metrics."""
