"""What may be asked of a server beside inference: the asyncio half."""

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


class AsyncAsking(ABC):
    """Each method raises ClientError."""

    @abstractmethod
    async def _ask(
        self, question: Question[T], timeout: float | None = None, retry: Retry | None = None
    ) -> T: ...

    async def live(self) -> bool:
        """Whether the server answers."""
        return await self._is(questions.live())

    async def ready(self, model: str = "", version: str = "") -> bool:
        """Whether the server, or one model, takes requests; False where nobody answers."""
        return await self._is(questions.ready(model, version))

    async def server(self) -> ServerInfo:
        """Who answers."""
        return await self._ask(questions.server())

    async def metadata(self, model: str, version: str = "") -> ModelInfo:
        """A model's versions and tensors."""
        return await self._ask(questions.metadata(model, version))

    async def config(self, model: str, version: str = "") -> ModelConfig:
        """A model's whole configuration, as Triton's message."""
        return await self._ask(questions.config(model, version))

    async def statistics(self, model: str = "", version: str = "") -> list[Statistics]:
        """Of one model, or of all."""
        return await self._ask(questions.statistics(model, version))

    async def index(self, *, ready: bool = False) -> list[IndexEntry]:
        """Every model version that the server knows, or those that are ready."""
        return await self._ask(questions.index(ready))

    async def load(
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
        await self._ask(questions.load(model, config, files or {}), timeout)

    async def unload(
        self, model: str, *, dependents: bool = False, timeout: float | None = None
    ) -> None:
        """Unload a model; with `dependents`, also those that it is made of."""
        await self._ask(questions.unload(model, dependents), timeout)

    async def _is(self, question: Question[bool]) -> bool:
        try:
            return await self._ask(question, retry=ONCE)
        except Unavailable:
            return False
