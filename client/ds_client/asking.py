"""What may be asked of a server beside inference: the blocking half."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeVar

from ds_client import questions
from ds_client.errors import Unavailable
from ds_client.infos import IndexEntry, ModelInfo, ServerInfo, Statistics
from ds_client.questions import Config, Files, Question
from ds_client.retry import ONCE, Retry
from ds_proto.model_config_pb2 import ModelConfig

T = TypeVar("T")


class Asking(ABC):
    """Each method raises ClientError."""

    @abstractmethod
    def _ask(
        self, question: Question[T], timeout: float | None = None, retry: Retry | None = None
    ) -> T: ...

    def live(self) -> bool:
        """Whether the server answers."""
        return self._is(questions.live())

    def ready(self, model: str = "", version: str = "") -> bool:
        """Whether the server, or one model, takes requests; False where nobody answers."""
        return self._is(questions.ready(model, version))

    def server(self) -> ServerInfo:
        """Who answers."""
        return self._ask(questions.server())

    def metadata(self, model: str, version: str = "") -> ModelInfo:
        """A model's versions and tensors."""
        return self._ask(questions.metadata(model, version))

    def config(self, model: str, version: str = "") -> ModelConfig:
        """A model's whole configuration, as Triton's message."""
        return self._ask(questions.config(model, version))

    def statistics(self, model: str = "", version: str = "") -> list[Statistics]:
        """Of one model, or of all."""
        return self._ask(questions.statistics(model, version))

    def index(self, *, ready: bool = False) -> list[IndexEntry]:
        """Every model version that the server knows, or those that are ready."""
        return self._ask(questions.index(ready))

    def load(
        self,
        model: str,
        *,
        config: Config | None = None,
        files: Files | None = None,
        timeout: float | None = None,
    ) -> None:
        """Load a model, or load it anew, and wait until it is ready.

        `config` replaces the configuration; `files`, such as {"1/model.onnx": bytes}, the folder.
        """
        self._ask(questions.load(model, config, files or {}), timeout)

    def unload(self, model: str, *, dependents: bool = False, timeout: float | None = None) -> None:
        """Unload a model; with `dependents`, also those that it is made of."""
        self._ask(questions.unload(model, dependents), timeout)

    def _is(self, question: Question[bool]) -> bool:
        try:
            return self._ask(question, retry=ONCE)
        except Unavailable:
            return False
