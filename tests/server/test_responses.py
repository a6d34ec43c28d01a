"""Which requests are equal, and what is kept of their answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_engines.errors import EngineFailure
from ds_engines.spec import ModelSpec, TensorSpec
from ds_serve.transport.codec import frames_of
from ds_serve.transport.link import Link
from ds_serve.transport.messages import Answer, Fault, Infer, InRegion, Tensor
from ds_serve.worker.accounts import Accounts
from ds_serve.worker.budget import SharedBudget
from ds_serve.worker.responses import Responses, key_of
from ds_serve.worker.work import Job

SPEC = ModelSpec(
    "m",
    "python",
    Path("m"),
    inputs=(TensorSpec("x", "UINT8", (-1,)), TensorSpec("z", "INT8", (-1,))),
    outputs=(TensorSpec("y", "UINT8", (-1,)), TensorSpec("w", "UINT8", (-1,))),
    cached=True,
)


def infer(**changes: Any) -> Infer:
    said: dict[str, Any] = {"x": b"abcd", "shape": (4,), "z": b"", "outputs": (), "partition": ""}
    said |= changes
    inputs = [
        Tensor("x", "UINT8", said["shape"], memoryview(bytearray(said["x"]))),
        Tensor("z", "INT8", (len(said["z"]),), memoryview(said["z"])),
    ]
    request = Infer(1, 1, 0.0, 1.0, inputs, said["outputs"])
    request.partition = said["partition"]
    return request


requests = st.fixed_dictionaries(
    {
        "x": st.sampled_from([b"abcd", b"abce", b"abc", b""]),
        "shape": st.sampled_from([(4,), (2, 2), (1, 4)]),
        "z": st.sampled_from([b"", b"d"]),
        "outputs": st.sampled_from([(), ("y",), ("w", "y"), ("y", "w")]),
        "partition": st.sampled_from(["", "a", "b"]),
    }
)


@given(requests, requests)
def test_keys_are_equal_where_the_requests_are(one: dict[str, Any], other: dict[str, Any]) -> None:
    def plain(said: dict[str, Any]) -> dict[str, Any]:
        return said | {"outputs": tuple(sorted(said["outputs"])) or ("w", "y")}

    names = ("w", "y")
    same = key_of(infer(**one), names) == key_of(infer(**other), names)
    assert same == (plain(one) == plain(other))


def test_the_order_of_inputs_does_not_matter() -> None:
    turned = infer()
    turned.inputs.reverse()
    assert key_of(turned, ("y",)) == key_of(infer(), ("y",))


def test_what_a_client_may_change_meanwhile_is_taken_over() -> None:
    request = infer()
    request.places = [InRegion("/key", 1, 0, 4)]
    theirs = request.inputs[0].data
    key = key_of(request, ("y",))
    assert isinstance(theirs, memoryview)
    theirs[0] = 0
    ours = request.inputs[0].data
    assert isinstance(ours, memoryview)
    assert bytes(ours) == b"abcd"
    assert key == key_of(infer(), ("y",))


@pytest.fixture
async def kept(tmp_path: Path) -> Any:
    budget = SharedBudget(tmp_path / "cache", 10_000)
    yield Responses(SPEC, budget, Accounts(SPEC))
    budget.close()


def job(request: Infer, found: Answer | bytes, **answer: Any) -> Job:
    assert isinstance(found, bytes)
    made = Job(Link(lambda link, frames: None), request, {}, Answer(request.id, **answer))
    made.cache_key = found
    return made


async def test_an_answer_may_be_sent_and_given_again(kept: Responses) -> None:
    """Sending takes a large tensor's bytes out of its message."""
    large = bytes(range(256)) * 8
    request = infer()
    output = Tensor("y", "UINT8", (2048,), memoryview(large))
    kept.keep([job(request, kept.find(request), outputs=[output])])
    for _ in range(2):
        found = kept.find(infer())
        assert isinstance(found, Answer)
        (given_back,) = found.outputs
        assert bytes(given_back.data) == large
        frames_of([found])


async def test_a_fault_is_not_kept(kept: Responses) -> None:
    request = infer()
    fault = Fault.of(EngineFailure("no"))
    kept.keep([job(request, kept.find(request), fault=fault)])
    assert isinstance(kept.find(infer()), bytes)
