"""What a load test sends: a module here for each kind of request, a TOML file for each run.

A tensor scenario is a module with three functions, written down in `Tensors`; one of chat follows
`Chats`. A TOML file beside it names the module and says how much load, for how long, and what must
come out; several files may name one module. `python -m loadtests.load` runs them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[np.generic]]
"""Tensors by name: arrays of fixed-size types, or of `str` or `bytes` objects for BYTES."""


class Tensors(Protocol):
    """What a module of tensor requests holds. Each may be called in a process of its own."""

    @staticmethod
    def model(folder: Path, **options: object) -> str | list[str]:
        """What follows `--model`, such as `fraud=/tmp/x/fraud.onnx`, or several of that.

        The first is the one that requests go to. Files that are built go into `folder`, which is
        there and lasts as long as the run; what is there already need not be built again.
        `options` come from the `[options]` table of the TOML file and from `--option NAME=VALUE`.
        Raises ValueError for an option that the model doesn't have, or for a wrong value.
        """
        ...

    @staticmethod
    def requests(seed: int) -> Iterator[Arrays]:
        """Inputs of one request after the other, without end, for one user.

        The same seed gives the same requests; each user has a seed of their own, from 0 upwards.
        It is called when the user starts, and must take little time for one request, for it
        shares a core with hundreds of other users: draw from arrays made beforehand.
        """
        ...

    @staticmethod
    def check(inputs: Arrays, outputs: Arrays) -> str | None:
        """What is wrong with the answer to `inputs`, in a few words, or None.

        Called for a sample of the answers only, so it may cost some milliseconds.
        """
        ...


class Chats(Protocol):
    """What a module of chat requests holds."""

    @staticmethod
    def model(folder: Path, **options: object) -> str | list[str]:
        """As in Tensors."""
        ...

    @staticmethod
    def prompts(seed: int) -> Iterator[dict[str, Any]]:
        """Bodies of OpenAI's chat completions without end, for one user.

        `model` and `stream` are added to them.
        """
        ...

    @staticmethod
    def check(prompt: dict[str, Any], text: str, tokens: int) -> str | None:
        """What is wrong with the answer, of so many tokens, in a few words, or None."""
        ...
