"""What a method is: a configuration with a registered handler."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, ClassVar, Protocol

import msgspec

from ds_quantize.forms import Form, Model

if TYPE_CHECKING:
    from ds_quantize.context import Context


class Method(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="method"):
    """Base of the configurations; a subclass is one method, its fields what a recipe may set.

    The first line of its docstring is what `ds-quantize recipes` says of it. `handler` is
    `module:function`, imported when the method is first used, as it brings in heavy libraries.
    `extra` is the extra of ds-serve that has those.
    """

    takes: ClassVar[Form] = "onnx"
    gives: ClassVar[Form] = "onnx"
    handler: ClassVar[str] = ""
    extra: ClassVar[str] = "quantize"
    needs_calibration: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """The name that recipes call it by."""
        return str(type(self).__struct_config__.tag)

    @property
    def files(self) -> tuple[str, ...]:
        """Files that its settings name: their contents decide the result as well."""
        return ()

    def load(self) -> Handler:
        """The function that does it."""
        module, _, function = self.handler.partition(":")
        handler: Handler = getattr(import_module(module), function)
        return handler


class Handler(Protocol):
    """`apply(model, method, context)` makes the next model, in `context.folder` where it is files.

    The model given is left as it is. Raises QuantizeError, which names the layer or the file.
    """

    def __call__(self, model: Model, method: Method, context: Context, /) -> Model: ...
