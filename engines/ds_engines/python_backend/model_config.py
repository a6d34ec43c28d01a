"""What `auto_complete_config` may say of a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_TENSOR = ("name", "data_type", "dims")


class ModelConfig:
    """A model configuration that is being completed. What config.pbtxt says already stays."""

    def __init__(self, model_config: str) -> None:
        self._config: dict[str, Any] = json.loads(model_config)

    def as_dict(self) -> dict[str, Any]:
        return self._config

    def set_max_batch_size(self, max_batch_size: int) -> None:
        """Raises ValueError where config.pbtxt asks for more."""
        said = self._config.get("max_batch_size", 0)
        if said > max_batch_size:
            raise ValueError(
                f"model {self._name!r}: max_batch_size is {said} in config.pbtxt, which is more "
                f"than the {max_batch_size} of auto_complete_config"
            )
        self._config["max_batch_size"] = max_batch_size

    def set_dynamic_batching(self) -> None:
        """Raises ValueError where config.pbtxt asks for another scheduler."""
        for other in ("sequence_batching", "ensemble_scheduling"):
            if other in self._config:
                raise ValueError(
                    f"model {self._name!r} has {other} in config.pbtxt; auto_complete_config "
                    "cannot set dynamic_batching"
                )
        self._config.setdefault("dynamic_batching", {})

    def set_model_transaction_policy(self, transaction_policy_dict: Mapping[str, Any]) -> None:
        """Raises ValueError where config.pbtxt says otherwise."""
        for name in transaction_policy_dict:
            if name != "decoupled":
                raise ValueError(f"model_transaction_policy has {name!r}; there is only decoupled")
        policy = self._config.setdefault("model_transaction_policy", {})
        for name, value in transaction_policy_dict.items():
            if policy.setdefault(name, value) != value:
                raise ValueError(
                    f"model {self._name!r}: decoupled is {policy[name]} in config.pbtxt, and "
                    f"{value} in auto_complete_config"
                )

    def add_input(self, input: Mapping[str, Any]) -> None:
        """Raises ValueError for one that is not whole, or that config.pbtxt describes otherwise."""
        self._add("input", input, (*_TENSOR, "optional"))

    def add_output(self, output: Mapping[str, Any]) -> None:
        """As `add_input`."""
        self._add("output", output, _TENSOR)

    @property
    def _name(self) -> str:
        return str(self._config.get("name", ""))

    def _add(self, what: str, tensor: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
        called = f"{what} {tensor.get('name', '')!r} of auto_complete_config"
        for name in tensor:
            if name not in allowed:
                raise ValueError(f"{called} has {name!r}; there are {', '.join(allowed)}")
        for name in _TENSOR:
            if name not in tensor:
                raise ValueError(f"{called} has no {name!r}")
        known = self._config.setdefault(what, [])
        said = next((one for one in known if one["name"] == tensor["name"]), None)
        if said is None:
            known.append(dict(tensor))
        else:
            self._merge(called, said, tensor)

    def _merge(self, called: str, said: dict[str, Any], tensor: Mapping[str, Any]) -> None:
        for name in ("data_type", "dims"):
            unsaid = said.get(name) in (None, "TYPE_INVALID", [])
            if not unsaid and said[name] != tensor[name]:
                raise ValueError(
                    f"model {self._name!r}: {called} has {name} {tensor[name]}, but config.pbtxt "
                    f"says {said[name]}"
                )
        said.update(tensor)
