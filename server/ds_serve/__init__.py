"""One high-throughput server for every model a team has."""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """InferenceServer is imported when it is asked for: `import ds_serve` stays quick."""
    if name == "InferenceServer":
        from ds_serve.api import InferenceServer  # noqa: PLC0415

        return InferenceServer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
