"""Tensors through every client of `tritonclient`: sync and asyncio, HTTP and gRPC."""

from __future__ import annotations

import asyncio
from typing import Any

import ml_dtypes
import numpy as np
import onnx_models
import pytest
from serving import Server
from triton_clients import MODULES, Client, connected
from tritonclient.utils import InferenceServerException

from ds_engines import datatypes

Array = np.ndarray[Any, Any]

pytestmark = pytest.mark.filterwarnings("ignore:Unclosed connection")

HTTP = [kind for kind in MODULES if kind.startswith("http")]


@pytest.fixture(params=MODULES)
async def client(request: pytest.FixtureRequest, tensors: Server):
    async with connected(request.param, tensors) as client:
        yield client


def sample(datatype: str, rows: int, seed: int = 0) -> Array:
    """`rows` rows of that datatype, the extremes of the type among them; each type has its width,
    and BYTES hold no text but what JSON can carry too.
    """
    random = np.random.default_rng(seed)
    width = 3 + len(datatype)
    if datatype == "BOOL":
        return random.random((rows, width)) < 0.5
    if datatype == "BYTES":
        words = [b"", "Schneegest\N{LATIN SMALL LETTER O WITH DIAERESIS}ber".encode(), b"a\x00b"]
        return random.choice(np.array(words, object), (rows, width))
    dtype = ml_dtypes.bfloat16 if datatype == "BF16" else datatypes.DATATYPES[datatype].dtype
    if "INT" in datatype:
        bounds = np.iinfo(dtype)
        values = random.integers(bounds.min, bounds.max, (rows, width), dtype, endpoint=True)
        values[0, :2] = bounds.min, bounds.max
        return values
    values = random.standard_normal((rows, width)).astype(dtype)
    values[0, :2] = ml_dtypes.finfo(dtype).max, ml_dtypes.finfo(dtype).smallest_subnormal
    return values


def samples(names: tuple[str, ...], rows: int, seed: int = 0) -> dict[str, Array]:
    return {f"in_{name}": sample(name, rows, seed) for name in names}


def echoed(result: Any, inputs: dict[str, Array]) -> None:
    """Every input came back as an output, to the last bit."""
    for name, array in inputs.items():
        found = result.as_numpy(name.replace("in_", "out_"))
        assert found.shape == array.shape, name
        if array.dtype == object:
            texts = [getattr(item, "encode", lambda item=item: item)() for item in found.flat]
            assert texts == list(array.flat)
        else:
            assert found.astype(array.dtype).tobytes() == array.tobytes(), name


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize(
    ("model", "names"), [("plain", onnx_models.PLAIN), ("halves", onnx_models.HALVES)]
)
async def test_every_datatype_comes_back_as_it_went(
    client: Client, model: str, names: tuple[str, ...], rows: int
) -> None:
    inputs = samples(names, rows)
    echoed(await client.infer(model, inputs), inputs)


@pytest.mark.parametrize("kind", HTTP)
async def test_every_datatype_travels_as_json(kind: str, tensors: Server) -> None:
    """But BF16, which these clients send as binary alone."""
    inputs = samples(onnx_models.PLAIN, 3)
    outputs = [f"out_{name}" for name in onnx_models.PLAIN]
    async with connected(kind, tensors) as client:
        result = await client.infer("plain", inputs, outputs, binary=False)
        assert all("data" in output for output in client.about(result)["outputs"])
        echoed(result, inputs)


@pytest.mark.parametrize("kind", HTTP)
async def test_numbers_that_are_none_travel_as_json(kind: str, tensors: Server) -> None:
    """These clients write NaN and Infinity, as the server does."""
    x = np.full((1, 64), 0.5, np.float32)
    x[0, :3] = np.nan, np.inf, -np.inf
    inputs = samples(onnx_models.PLAIN, 1) | {"in_FP32": x}
    async with connected(kind, tensors) as client:
        result = await client.infer("plain", inputs, ["out_FP32"], binary=False)
        np.testing.assert_array_equal(result.as_numpy("out_FP32"), x)


async def test_tensors_of_no_elements_pass(client: Client) -> None:
    inputs = {name: array[:, :0] for name, array in samples(onnx_models.PLAIN, 2).items()}
    echoed(await client.infer("plain", inputs), inputs)


@pytest.mark.filterwarnings("ignore:Sending a large body")
async def test_large_tensors_pass(client: Client) -> None:
    x = np.random.default_rng(0).standard_normal((4, 1000, 300), np.float32)
    result = await client.infer("sequences", {"x": x})
    np.testing.assert_array_equal(result.as_numpy("double"), 2 * x)


async def test_the_answer_says_which_request_it_is_of(client: Client) -> None:
    x = np.ones((1, 64), np.float32)
    result = await client.infer("mlp", {"x": x}, request_id="number 7", model_version="1")
    about = client.about(result)
    assert (about["model_name"], about["model_version"]) == ("mlp", "1")
    assert about["id"] == "number 7"
    nameless = client.about(await client.infer("mlp", {"x": x}))
    assert not nameless.get("id")


@pytest.mark.parametrize("outputs", [["total"], ["double"], ["total", "double"]])
async def test_only_the_outputs_asked_for_come(client: Client, outputs: list[str]) -> None:
    result = await client.infer("sequences", {"x": np.ones((1, 2, 3), np.float32)}, outputs)
    assert sorted(o["name"] for o in client.about(result)["outputs"]) == sorted(outputs)
    if "total" in outputs:
        assert result.as_numpy("total").tolist() == [[[6.0]]]


async def test_parameters_of_ones_own_are_taken(client: Client) -> None:
    inputs = {"x": np.ones((1, 64), np.float32)}
    result = await client.infer(
        "mlp", inputs, parameters={"mood": "good", "depth": 3, "fast": True}, timeout=10_000_000
    )
    assert result.as_numpy("y").shape == (1, 8)


@pytest.mark.parametrize(
    "options", [{"sequence_id": 7, "sequence_start": True}, {"priority": 1}], ids=str
)
async def test_models_that_are_not_scheduled_so_ignore_it(
    client: Client, options: dict[str, Any]
) -> None:
    result = await client.infer("mlp", {"x": np.ones((1, 64), np.float32)}, **options)
    assert result.as_numpy("y").shape == (1, 8)


async def test_classes_instead_of_values(client: Client) -> None:
    x = np.random.default_rng(5).standard_normal((2, 64), np.float32)
    values = (await client.infer("mlp", {"x": x})).as_numpy("y")
    output = client.output("y", class_count=3)
    found = (await client.infer("mlp", {"x": x}, [output])).as_numpy("y")
    assert found.shape == (2, 3)
    for row, texts in zip(values, found, strict=True):
        parts = [text.decode().split(":") for text in texts]
        assert [int(index) for _, index in parts] == np.argsort(-row)[:3].tolist()
        np.testing.assert_allclose([float(value) for value, _ in parts], -np.sort(-row)[:3], 1e-4)


async def test_errors_say_what_is_wrong(client: Client) -> None:
    with pytest.raises(InferenceServerException, match="no model 'nobody'") as unknown:
        await client.infer("nobody", {"x": np.ones((1, 64), np.float32)})
    assert str(unknown.value.status()) in ("404", "StatusCode.NOT_FOUND")
    with pytest.raises(InferenceServerException, match=r"FP32.*FP64") as wrong:
        await client.infer("mlp", {"x": np.ones((1, 64))})
    assert str(wrong.value.status()) in ("400", "StatusCode.INVALID_ARGUMENT")


@pytest.mark.parametrize("kind", HTTP)
@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_bodies_travel_compressed(kind: str, coding: str, tensors: Server) -> None:
    x = np.zeros((1, 300, 300), np.float32)
    x[0, :3] = np.arange(900).reshape(3, 300)
    both = {"request_compression_algorithm": coding, "response_compression_algorithm": coding}
    async with connected(kind, tensors) as client:
        result = await client.infer("sequences", {"x": x}, **both)
        np.testing.assert_array_equal(result.as_numpy("double"), 2 * x)
        assert result.as_numpy("total").item() == x.sum()
        small = await client.infer("mlp", {"x": np.ones((1, 64), np.float32)}, **both)
        assert small.as_numpy("y").shape == (1, 8)


@pytest.mark.parametrize("kind", ["grpc", "grpc-aio"])
async def test_messages_travel_compressed(kind: str, tensors: Server) -> None:
    inputs = {"x": np.ones((1, 64), np.float32)}
    async with connected(kind, tensors) as client:
        plain = await client.infer("mlp", inputs)
        small = await client.infer("mlp", inputs, compression_algorithm="gzip")
        np.testing.assert_array_equal(small.as_numpy("y"), plain.as_numpy("y"))


async def test_lengths_may_differ_from_request_to_request(tensors: Server) -> None:
    """Those that differ run apart, those that agree together, and all at the same time."""
    random = np.random.default_rng(3)
    lengths = [int(length) for length in random.choice([1, 2, 5, 17], 60)]
    given = [random.standard_normal((1, length, 3), np.float32) for length in lengths]
    for kind in ("grpc-aio", "http-aio"):
        async with connected(kind, tensors) as client:
            results = await asyncio.gather(*(client.infer("sequences", {"x": x}) for x in given))
        for x, result in zip(given, results, strict=True):
            np.testing.assert_array_equal(result.as_numpy("double"), 2 * x)
            np.testing.assert_allclose(result.as_numpy("total").item(), x.sum(), rtol=1e-3)


# What the server says of itself and of its models.


async def test_health(client: Client) -> None:
    assert await client.call("is_server_live")
    assert await client.call("is_server_ready")
    assert await client.call("is_model_ready", "mlp")
    assert await client.call("is_model_ready", "mlp", "1")
    assert not await client.call("is_model_ready", "nobody")


async def test_metadata(client: Client) -> None:
    about = await client.call("get_server_metadata")
    assert about["name"] == "ds-serve"
    assert "binary_tensor_data" in about["extensions"]
    model = await client.call("get_model_metadata", "sequences")
    assert (model["name"], model["versions"]) == ("sequences", ["1"])
    assert model["platform"] == "onnxruntime_onnx"
    (x,) = model["inputs"]
    assert (x["name"], x["datatype"]) == ("x", "FP32")
    assert [int(size) for size in x["shape"]] == [-1, -1, -1]
    assert [output["name"] for output in model["outputs"]] == ["double", "total"]


async def test_config(client: Client) -> None:
    config = await client.call("get_model_config", "mlp")
    config = config.get("config", config)
    assert config["name"] == "mlp"
    assert int(config["max_batch_size"]) == 64
    (x,) = config["input"]
    assert (x["name"], x["data_type"]) == ("x", "TYPE_FP32")
    assert [int(size) for size in x["dims"]] == [64]
    assert "dynamic_batching" in config


async def test_statistics_count_what_was_done(client: Client) -> None:
    def counts(answer: dict[str, Any]) -> tuple[int, int, int]:
        (found,) = answer["model_stats"]
        success = found["inference_stats"]["success"]
        return (
            int(found.get("inference_count", 0)),
            int(found.get("execution_count", 0)),
            int(success.get("count", 0)),
        )

    before = counts(await client.call("get_inference_statistics", "mlp"))
    for _ in range(3):
        await client.infer("mlp", {"x": np.ones((5, 64), np.float32)})
    after = counts(await client.call("get_inference_statistics", "mlp"))
    assert [new - old for new, old in zip(after, before, strict=True)] == [15, 3, 3]
    everything = await client.call("get_inference_statistics")
    names = {model["name"] for model in everything["model_stats"]}
    assert names == {"plain", "halves", "mlp", "sequences"}


async def test_unknown_models_are_unknown_to_every_call(client: Client) -> None:
    for name in ("get_model_metadata", "get_model_config", "get_inference_statistics"):
        with pytest.raises(InferenceServerException, match="'nobody'"):
            await client.call(name, "nobody")


async def test_cuda_memory_is_said_to_be_unavailable(client: Client) -> None:
    status = await client.call("get_cuda_shared_memory_status")
    assert not (status.get("regions") if isinstance(status, dict) else status)
    with pytest.raises(InferenceServerException, match="unavailable") as refused:
        await client.call("register_cuda_shared_memory", "r", b"AA==", 0, 4)
    assert str(refused.value.status()) in ("501", "StatusCode.UNIMPLEMENTED")
    await client.call("unregister_cuda_shared_memory")
