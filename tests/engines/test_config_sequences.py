"""Sequence batching and warm-up in config.pbtxt: read, checked against the model, and told."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from ds_engines import config_pbtxt
from ds_engines.errors import ConfigError
from ds_engines.spec import (
    BatchPolicy,
    Control,
    ModelSpec,
    StateTensor,
    TensorSpec,
    WarmUp,
    WarmUpInput,
)

SUMS = ModelSpec(
    name="sums",
    engine="onnxruntime",
    artifact=Path("/models/sums.onnx"),
    inputs=(
        TensorSpec("x", "FP32", (-1, 2), 0),
        TensorSpec("start", "INT32", (-1, 1), 0),
        TensorSpec("end", "BOOL", (-1,), 0),
        TensorSpec("ready", "FP32", (-1, 1), 0),
        TensorSpec("id", "UINT64", (-1, 1), 0),
        TensorSpec("state", "FP32", (2, -1, 3), 1),
        TensorSpec("rate", "INT64", ()),
    ),
    outputs=(
        TensorSpec("y", "FP32", (-1, 2), 0),
        TensorSpec("next", "FP32", (2, -1, 3), 1),
    ),
    batch=BatchPolicy(max_batch_size=4),
    platform="onnxruntime_onnx",
)

CONTROLS = """
    control_input { name: "start" control {
        kind: CONTROL_SEQUENCE_START int32_false_true: [0, 7] } }
    control_input { name: "end" control {
        kind: CONTROL_SEQUENCE_END bool_false_true: [false, true] } }
    control_input { name: "ready" control {
        kind: CONTROL_SEQUENCE_READY fp32_false_true: [0, 1] } }
    control_input { name: "id" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } }
"""
STATE = """state { input_name: "state" output_name: "next" data_type: TYPE_FP32 dims: [2, 3]
    initial_state { name: "none" data_type: TYPE_FP32 dims: [2, 3] zero_data: true } }"""

Apply = Callable[[str], ModelSpec]


@pytest.fixture
def apply(tmp_path: Path) -> Apply:
    def run(text: str, spec: ModelSpec = SUMS) -> ModelSpec:
        path = tmp_path / "config.pbtxt"
        path.write_text(text)
        return config_pbtxt.apply(spec, config_pbtxt.read(path), str(path))

    return run


def test_a_sequence_model_hides_what_the_server_fills_in_and_keeps(apply: Apply) -> None:
    spec = apply(
        f"""instance_group {{ count: 2 }} sequence_batching {{
        max_sequence_idle_microseconds: 5000000 {CONTROLS} {STATE} }}"""
    )
    policy = spec.sequence
    assert policy is not None
    assert (policy.strategy, policy.slots, policy.idle_us) == ("direct", 8, 5_000_000)
    assert policy.controls == (
        Control("start", "START", "INT32", (0, 7)),
        Control("end", "END", "BOOL", (0, 1)),
        Control("ready", "READY", "FP32", (0, 1)),
        Control("id", "CORRID", "UINT64"),
    )
    assert policy.states == (
        StateTensor("state", "next", "FP32", (2, 3), (2, 3), initial_name="none"),
    )
    assert [tensor.name for tensor in spec.public.inputs] == ["x", "rate"]
    assert [tensor.name for tensor in spec.public.outputs] == ["y"]
    assert len(spec.inputs) == 7
    encoded = msgspec.msgpack.encode(spec, enc_hook=str)
    assert msgspec.msgpack.decode(encoded, type=ModelSpec, dec_hook=lambda t, v: t(v)) == spec


def test_a_state_that_is_an_output_too_is_shown(apply: Apply) -> None:
    spec = apply(f'output {{ name: "next" }} sequence_batching {{ {STATE} }}')
    assert [tensor.name for tensor in spec.public.outputs] == ["y", "next"]


def test_the_oldest_strategy(apply: Apply) -> None:
    spec = apply("""sequence_batching { oldest {
        max_candidate_sequences: 100 preferred_batch_size: [2, 4]
        max_queue_delay_microseconds: 300 preserve_ordering: true } }""")
    assert spec.sequence is not None
    assert (spec.sequence.strategy, spec.sequence.slots) == ("oldest", 100)
    assert (spec.sequence.preferred_sizes, spec.sequence.max_delay_us) == ((2, 4), 300)
    assert spec.batch.preserve_ordering


@pytest.mark.parametrize(
    "strategy",
    ["direct { minimum_slot_utilization: 0.5 max_queue_delay_microseconds: 9 }", "oldest { }"],
)
def test_clients_are_told_what_the_file_says(apply: Apply, strategy: str) -> None:
    plain = msgspec.structs.replace(
        SUMS,
        inputs=tuple(t for t in SUMS.inputs if t.name not in ("state", "rate")),
        outputs=SUMS.outputs[:1],
    )
    spec = apply(f"sequence_batching {{ {strategy} {CONTROLS} }}", plain)
    told = config_pbtxt.describe(spec)
    assert [tensor.name for tensor in told.input] == ["x"]
    assert config_pbtxt.apply(plain, told, "told") == spec
    states = config_pbtxt.describe(
        apply(f"sequence_batching {{ {STATE} }}")
    ).sequence_batching.state
    assert [(s.input_name, s.output_name, [*s.dims]) for s in states] == [("state", "next", [2, 3])]


def test_an_initial_state_may_lie_in_a_file(apply: Apply, tmp_path: Path) -> None:
    text = f"sequence_batching {{ {STATE} }}".replace("zero_data: true", 'data_file: "first"')
    with pytest.raises(ConfigError, match="initial_state: data_file is 'first', but there is no"):
        apply(text)
    file = tmp_path / "initial_state" / "first"
    file.parent.mkdir()
    file.write_bytes(struct.pack("6f", *range(6)))
    spec = apply(text)
    assert spec.sequence is not None
    assert spec.sequence.states[0].file == str(file)
    with pytest.raises(ConfigError, match="must be the name of a file in"):
        apply(text.replace('"first"', '"../first"'))


INPUT = 'inputs { key: "x" value { data_type: TYPE_FP32 dims: [2] random_data: true } }'
RATE = 'inputs { key: "rate" value { zero_data: true } }'


def test_warm_ups(apply: Apply, tmp_path: Path) -> None:
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "rate").write_bytes(bytes(8))
    rate = RATE.replace("zero_data: true", 'input_data_file: "rate"')
    text = f"""sequence_batching {{ {CONTROLS} {STATE} }}
        model_warmup {{ name: "one" batch_size: 1 {INPUT} {RATE} }}
        model_warmup {{ name: "four" batch_size: 4 count: 3 {INPUT} {rate} }}"""
    x = WarmUpInput("x", "FP32", (2,), "random")
    file = str(tmp_path / "warmup" / "rate")
    assert apply(text).warm_ups == (
        WarmUp("one", 1, 1, (WarmUpInput("rate", "INT64", (), "zero"), x)),
        WarmUp("four", 4, 3, (WarmUpInput("rate", "INT64", (), file), x)),
    )
    told = config_pbtxt.describe(apply(text)).model_warmup
    assert [(each.name, each.batch_size, each.count) for each in told] == [
        ("one", 1, 1),
        ("four", 4, 3),
    ]


def sequence(text: str) -> str:
    return f"sequence_batching {{ {text} }}"


def control(name: str, text: str) -> str:
    return sequence(f'control_input {{ name: "{name}" control {{ {text} }} }}')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (sequence("iterative_sequence: true"), "'sequence_batching.iterative_sequence' is not"),
        (control("z", "int32_false_true: [0, 1]"), "control_input 'z': the model has no tensor"),
        (control("start", "int32_false_true: [0]"), "START needs one of int32_false_true,"),
        (
            control("start", "fp32_false_true: [0, 1]"),
            "START is FP32, but the model file has INT32",
        ),
        (control("x", "fp32_false_true: [0, 1]"), "must have one element for each request"),
        (
            control("rate", "kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_INT64"),
            "'rate' has no batch axis",
        ),
        (control("id", "kind: CONTROL_SEQUENCE_CORRID"), "CORRID needs a data_type"),
        (
            control("ready", "kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_FP32"),
            "CORRID is TYPE_FP32; it must be TYPE_UINT64, TYPE_INT64, TYPE_UINT32, TYPE_INT32,",
        ),
        (
            sequence(STATE.replace('"next"', '"last"')),
            "output_name: the model has no tensor 'last'",
        ),
        (
            sequence(STATE.replace("TYPE_FP32", "TYPE_FP16")),
            "data_type is TYPE_FP16, but the model",
        ),
        (
            sequence(STATE.replace("[2, 3]", "[2, 4]")),
            "'state': dims are [2, 4], but the model file has [2, 3] without the batch axis 1",
        ),
        (sequence(STATE.replace("zero_data: true", "")), "one of zero_data and data_file must be"),
        (sequence(STATE + STATE), "names 'state' twice"),
        (
            sequence(STATE.replace("dims: [2, 3]\n", "dims: [2, 3] use_growable_memory: true")),
            "'sequence_batching.state.use_growable_memory' is not supported",
        ),
        (
            f'input {{ name: "state" }} {sequence(STATE)}',
            "input 'state' is filled in by the server",
        ),
        (sequence("direct { minimum_slot_utilization: 2 }"), "slot_utilization is 2, it must be 0"),
        (sequence("oldest { preferred_batch_size: 5 }"), "preferred_batch_size 5 is not between"),
        (f"model_warmup {{ name: 'w' batch_size: 5 {INPUT} {RATE} }}", "batch_size is 5, it must"),
        (f"model_warmup {{ name: 'w' {INPUT} {RATE} }}", "'w': batch_size is 0, it must be 1 to 4"),
        (
            f"{sequence(CONTROLS + STATE)} model_warmup {{ name: 'w' batch_size: 1 {INPUT} }}",
            "model_warmup 'w': input 'rate' is missing",
        ),
        (
            f"{sequence(CONTROLS + STATE)} model_warmup {{ name: 'w' batch_size: 1 {RATE} "
            f"{INPUT.replace('[2]', '[3]')} }}",
            "input 'x': dims are [3], but the model file has [2]",
        ),
        (
            f"{sequence(CONTROLS + STATE)} model_warmup {{ name: 'w' batch_size: 1 {RATE} "
            f"{INPUT.replace('random_data: true', '')} }}",
            "input 'x': one of zero_data, random_data and input_data_file must be set",
        ),
    ],
)
def test_what_is_wrong_is_named(apply: Apply, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply(text)
    assert message in str(caught.value)
