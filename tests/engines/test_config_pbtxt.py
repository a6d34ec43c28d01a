"""config.pbtxt: read, laid over a model's spec, and written out for clients."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from google.protobuf import text_format

from ds_engines import config_pbtxt
from ds_engines.errors import ConfigError
from ds_engines.spec import BatchPolicy, ModelSpec, QueuePolicy, TensorSpec
from ds_proto.model_config_pb2 import ModelConfig, ModelInput

MLP = ModelSpec(
    name="mlp",
    engine="onnxruntime",
    artifact=Path("/models/mlp.onnx"),
    inputs=(TensorSpec("x", "FP32", (-1, 64), batch_axis=0),),
    outputs=(TensorSpec("y", "FP32", (-1, 8), batch_axis=0),),
    batch=BatchPolicy(max_batch_size=64, max_delay_us=100),
    platform="onnxruntime_onnx",
)
VAD = ModelSpec(
    name="vad",
    engine="onnxruntime",
    artifact=Path("/models/vad.onnx"),
    inputs=(
        TensorSpec("input", "FP32", (-1, -1), batch_axis=0),
        TensorSpec("state", "FP32", (2, -1, 128), batch_axis=1),
        TensorSpec("sr", "INT64", ()),
    ),
    outputs=(
        TensorSpec("output", "FP32", (-1, 1), batch_axis=0),
        TensorSpec("stateN", "FP32", (2, -1, 128), batch_axis=1),
    ),
    batch=BatchPolicy(max_batch_size=16),
    platform="onnxruntime_onnx",
)


def unproven(spec: ModelSpec) -> ModelSpec:
    """The spec as it is where running the model did not show that its rows are independent."""

    def bare(tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(msgspec.structs.replace(tensor, batch_axis=None) for tensor in tensors)

    policy = msgspec.structs.replace(spec.batch, max_batch_size=0)
    return msgspec.structs.replace(
        spec, inputs=bare(spec.inputs), outputs=bare(spec.outputs), batch=policy
    )


@pytest.fixture
def apply(tmp_path):
    """Writes a config.pbtxt and gives the spec with it laid over."""

    def run(text: str, spec: ModelSpec = MLP) -> ModelSpec:
        path = tmp_path / "config.pbtxt"
        path.write_text(text)
        return config_pbtxt.apply(spec, config_pbtxt.read(path), str(path))

    return run


def test_a_whole_configuration_is_laid_over_the_model(apply):
    spec = apply("""
        name: "mlp"
        platform: "onnxruntime_onnx"
        backend: "onnxruntime"
        default_model_filename: "mlp.onnx"
        version_policy { latest { num_versions: 1 } }
        max_batch_size: 32
        input [{ name: "x", data_type: TYPE_FP32, dims: [64] }]
        output [{ name: "y", data_type: TYPE_FP32, dims: [8] }]
        dynamic_batching {
            preferred_batch_size: [8, 16]
            max_queue_delay_microseconds: 500
            default_queue_policy { max_queue_size: 7, default_timeout_microseconds: 9000 }
        }
        instance_group [{ kind: KIND_CPU, count: 2 }, { }]
        model_transaction_policy { decoupled: false }
        response_cache { }
    """)
    assert spec.batch == BatchPolicy(
        max_batch_size=32,
        max_delay_us=500,
        preferred_sizes=(8, 16),
        max_queue_size=7,
        timeout_us=9000,
    )
    assert spec.slots == 3
    assert (spec.inputs, spec.outputs) == (MLP.inputs, MLP.outputs)


def test_priorities_and_their_policies(apply):
    spec = apply("""
        dynamic_batching {
            priority_levels: 3
            default_priority_level: 2
            default_queue_policy { timeout_action: DELAY, default_timeout_microseconds: 100 }
            priority_queue_policy {
                key: 1 value { max_queue_size: 5, allow_timeout_override: true }
            }
        }
    """)
    assert not spec.batch.plain
    assert spec.batch.queue_policy(1) == QueuePolicy(5, 0, "REJECT", True)
    assert spec.batch.queue_policy(3) == QueuePolicy(1024, 100, "DELAY", False)
    assert [spec.batch.level(priority) for priority in (0, 1, 3, 4)] == [2, 1, 3, 2]
    told = config_pbtxt.describe(spec)
    assert config_pbtxt.apply(MLP, told, "told") == spec


def test_ordering_and_bounds_alone_need_no_priorities(apply):
    spec = apply("dynamic_batching { preserve_ordering: true }")
    assert spec.batch.preserve_ordering
    assert spec.batch.plain


def test_an_empty_file_changes_nothing(apply):
    assert apply("# nothing") == MLP
    assert apply("", VAD) == VAD


@pytest.mark.parametrize(
    "hint",
    [
        "graph { level: 1 }",
        "priority: PRIORITY_MAX",
        "cuda { graphs: true }",
        "input_pinned_memory { enable: false }",
        "eager_batching: true",
        "execution_accelerators { gpu_execution_accelerator { name: 'tensorrt' } }",
    ],
)
def test_hints_for_devices_change_nothing(apply, hint):
    assert apply(f"optimization {{ {hint} }}") == MLP


def test_what_is_absent_stays(apply):
    spec = apply("dynamic_batching { preferred_batch_size: [4] }")
    assert spec.batch == BatchPolicy(max_batch_size=64, max_delay_us=100, preferred_sizes=(4,))


def test_dims_fix_a_varying_axis(apply):
    spec = apply('max_batch_size: 8 input { name: "input" dims: [512] }', VAD)
    assert spec.inputs[0].shape == (-1, 512)
    spec = apply('input { name: "state" dims: [2, 128] }', VAD)
    assert spec.inputs[1].shape == (2, -1, 128)


@pytest.mark.parametrize("text", ["max_batch_size: 0", "max_batch_size:+0 # off"])
def test_a_batch_size_of_zero_switches_batching_off(apply, text):
    assert apply(text).batch.max_batch_size == 0
    whole = apply(text + '\ninput { name: "x" dims: [-1, 64] }')
    assert whole.inputs[0].shape == (-1, 64)


def test_whole_dims_without_a_batch_size_switch_batching_off(apply):
    spec = apply('input { name: "x" dims: [5, 64] }')
    assert spec.batch.max_batch_size == 0
    assert spec.inputs[0].shape == (5, 64)


def test_a_zero_in_a_comment_is_no_setting(apply):
    assert apply("# max_batch_size: 0").batch.max_batch_size == 64


def test_the_operator_may_batch_what_could_not_be_proven(apply):
    spec = apply("max_batch_size: 8", unproven(MLP))
    assert spec.batch.max_batch_size == 8
    assert (spec.inputs, spec.outputs) == (MLP.inputs, MLP.outputs)


def test_parameters_name_other_batch_axes(apply):
    spec = apply(
        """max_batch_size: 16
        parameters { key: "batch_axis.state" value { string_value: "1" } }
        parameters { key: "batch_axis.stateN" value { string_value: "1" } }
        parameters { key: "batch_axis.sr" value { string_value: "none" } }""",
        unproven(VAD),
    )
    assert spec == VAD


def test_parameters_of_other_backends_change_nothing(apply):
    assert apply('parameters { key: "execute_delay_ms" value { string_value: "3" } }') == MLP


def test_the_format_of_an_input_is_passed_on(apply):
    spec = apply('input { name: "x" format: FORMAT_NHWC }')
    assert spec.inputs[0].format == "FORMAT_NHWC"
    assert config_pbtxt.describe(spec).input[0].format == ModelInput.FORMAT_NHWC


def test_labels_name_the_elements_of_an_output(apply, tmp_path):
    (tmp_path / "labels.txt").write_text("cat\ndog\n", encoding="utf-8")
    spec = apply('output { name: "y" label_filename: "labels.txt" }')
    assert spec.outputs[0].labels == ("cat", "dog")


@pytest.mark.parametrize(
    "policy", ["latest { num_versions: 3 }", "all { }", "specific { versions: [1, 4] }"]
)
def test_the_version_policy_is_passed_on(apply, policy):
    wanted = text_format.Parse(f"version_policy {{ {policy} }}", ModelConfig())
    described = config_pbtxt.describe(apply(f"version_policy {{ {policy} }}"))
    assert described.version_policy == wanted.version_policy


def test_every_field_is_honoured_or_refused(apply):
    """Whatever the contract offers is either used by the tests above or refused by name."""
    used = [
        "name",
        "platform",
        "backend",
        "default_model_filename",
        "version_policy",
        "max_batch_size",
        "input",
        "output",
        "dynamic_batching",
        "instance_group",
        "parameters",
        "sequence_batching",
        "model_warmup",
        "optimization",
        "response_cache",
    ]
    for field in ModelConfig.DESCRIPTOR.fields:
        if field.name in used:
            continue
        config = ModelConfig()
        fill(config, field)
        why = f"field '{field.name}' is not supported"
        if field.name == "ensemble_scheduling":
            why = 'ensemble_scheduling is set, but the platform is not "ensemble"'
        with pytest.raises(ConfigError, match=f"here: {why}"):
            config_pbtxt.apply(MLP, config, "here")


def fill(message, field) -> None:
    """Set a field to something other than its default, however deep that lies."""
    value = getattr(message, field.name)
    if field.message_type and field.message_type.GetOptions().map_entry:
        target = field.message_type.fields_by_name["value"]
        if target.message_type:
            value["key"].SetInParent()
        else:
            value["key"] = "value"
    elif field.message_type:
        nested = value.add() if field.is_repeated else value
        nested.SetInParent()
        fill(nested, field.message_type.fields[0])
    elif field.is_repeated:
        text = field.type == field.TYPE_STRING
        value.append("text" if text else 1)
    else:
        setattr(message, field.name, "text" if isinstance(value, str) else type(value)(1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_sise: 4", ":1: ModelConfig has no field 'max_batch_sise'; did you mean 'max_b"),
        ("\ninput [{\n  name: 'x'\n  dim: 4 }]", ":4: ModelInput has no field 'dim'; did you mean"),
        ("max_batch_size: 'a'", ":1: field 'max_batch_size': Couldn't parse integer: 'a'"),
        ("input { dims: [1,\n 'a'] }", ":2: field 'dims': Couldn't parse integer"),
        ("input {", 'Expected "}"'),
        ("max_batch_size: -2", "max_batch_size is -2"),
        ("name: 'other'", "name is 'other', but this model's is 'mlp'"),
        ("backend: 'tensorrt'", "backend is 'tensorrt', but this model's is 'onnxruntime'"),
        ("platform: 'tensorrt_plan'", "platform is 'tensorrt_plan', but this model's is 'onnxrun"),
        ("default_model_filename: 'a.onnx'", "default_model_filename is 'a.onnx', but this"),
        ("input { name: 'z' }", "input 'z': the model has no tensor 'z' there; it has x"),
        ("input { name: 'x' } input { name: 'x' }", "input 'x' is there twice"),
        ("input { name: 'x' data_type: TYPE_FP16 }", "is TYPE_FP16, but the model file has TYPE_F"),
        ("input { name: 'x' dims: [65] }", "dims are [65], but the model file has [64] without"),
        ("output { name: 'y' dims: [-1] }", "output 'y': dims are [-1], but the model file has [8"),
        (
            "input { name: 'x' dims: [8, 8] reshape { shape: [8] } }",
            "reshape.shape is [8], but the",
        ),
        ("input { name: 'x' reshape { shape: [64] } }", "dims are []; beside a reshape they must"),
        (
            "input { name: 'x' dims: [8, 9] reshape { shape: [64] } }",
            "input 'x': dims are [8, 9] and reshape.shape is [64]; both must have as many elements",
        ),
        (
            "output { name: 'y' dims: [-1] reshape { shape: [8] } }",
            "output 'y': dims are [-1] and reshape.shape is [8]; both must have as many elements",
        ),
        ("input { name: 'x' allow_ragged_batch: true }", "field 'input.allow_ragged_batch' is not"),
        (
            "input { name: 'x' optional: true }",
            "input 'x' is optional, but the model cannot do without it: the model file has no val",
        ),
        ("output { name: 'y' label_filename: 'l' }", "label_filename 'l' in "),
        ("output { name: 'y' label_filename: '../l' }", "'../l' must be a path below the model's"),
        ("model_operations { op_library_filename: 'a' }", "'model_operations' is not supported"),
        ("optimization { graph { level: -1 } }", "field 'optimization.graph' is not supported"),
        (
            "optimization { execution_accelerators { cpu_execution_accelerator { name: 'x' } } }",
            "field 'optimization.execution_accelerators' is not supported",
        ),
        ("batch_input { }", "field 'batch_input' is not supported"),
        ("model_transaction_policy { decoupled: true }", "'model_transaction_policy' is not supp"),
        ("instance_group { rate_limiter { priority: 1 } }", "'instance_group.rate_limiter' is not"),
        ("response_cache { enable: true } sequence_batching { }", "exclude each other"),
        (
            "dynamic_batching { priority_levels: 2 }",
            "dynamic_batching.default_priority_level is 0, it must be 1 to 2",
        ),
        (
            "dynamic_batching { priority_levels: 2 default_priority_level: 3 }",
            "default_priority_level is 3, it must be 1 to 2",
        ),
        (
            "dynamic_batching { default_priority_level: 1 }",
            "default_priority_level is set, but priority_levels is not",
        ),
        (
            "dynamic_batching { priority_queue_policy { key: 1 value { } } }",
            "priority_queue_policy is set, but priority_levels is not",
        ),
        (
            "dynamic_batching { priority_levels: 2 default_priority_level: 1 "
            "priority_queue_policy { key: 3 value { } } }",
            "priority_queue_policy names level 3, it must be 1 to 2",
        ),
        ("dynamic_batching { priority_levels: 1001 }", "1001, it must be at most 1000"),
        (
            "dynamic_batching { preserve_ordering: true priority_levels: 2 "
            "default_priority_level: 1 }",
            "preserve_ordering and priority_levels 2 exclude each other",
        ),
        (
            "dynamic_batching { preserve_ordering: true "
            "default_queue_policy { timeout_action: DELAY } }",
            "preserve_ordering and timeout_action DELAY exclude each other",
        ),
        ("dynamic_batching { preferred_batch_size: 65 }", "65 is not between 1 and max_batch_size"),
        ("max_batch_size: 0 dynamic_batching { }", "but the model is not batched"),
        ("instance_group { kind: KIND_GPU }", "is KIND_GPU, but onnxruntime runs on the CPU"),
        ("instance_group { gpus: 0 }", "gpus is [0], but onnxruntime runs on the CPU"),
        ("instance_group { count: -1 }", "instance_group.count is -1, it must be >= 1"),
        (
            "parameters { key: 'batch_axis.z' value { string_value: '0' } }",
            "parameter 'batch_axis.z': the model has no tensor 'z' there; it has x, y",
        ),
        (
            "parameters { key: 'batch_axis.x' value { string_value: '1' } }",
            "parameter 'batch_axis.x' is '1'; it must be 'none' or an axis of [-1, 64] that may v",
        ),
        (
            "max_batch_size: 4 parameters { key: 'batch_axis.x' value { string_value: 'none' } }",
            "max_batch_size is 4, but no input has a batch axis",
        ),
    ],
)
def test_what_is_wrong_is_named(apply, tmp_path, text, message):
    with pytest.raises(ConfigError) as caught:
        apply(text)
    assert str(caught.value).startswith(str(tmp_path / "config.pbtxt"))
    assert message in str(caught.value)


def test_batching_along_a_fixed_axis_is_refused(apply):
    with pytest.raises(ConfigError, match=r"first axis of 'state', \[2, -1, 128\], cannot vary"):
        apply("max_batch_size: 4", unproven(VAD))
    with pytest.raises(ConfigError, match="max_batch_size must be set"):
        apply(
            "parameters { key: 'batch_axis.x' value { string_value: '0' } }",
            unproven(MLP),
        )


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        config_pbtxt.read(tmp_path / "config.pbtxt")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        config_pbtxt.read(tmp_path)
    (tmp_path / "config.pbtxt").write_bytes(b"name: '\xff'")
    with pytest.raises(ConfigError, match="byte 7 is not UTF-8"):
        config_pbtxt.read(tmp_path / "config.pbtxt")


def test_clients_are_told_the_whole_configuration():
    config = config_pbtxt.describe(MLP)
    assert (config.name, config.platform, config.backend) == (
        "mlp",
        "onnxruntime_onnx",
        "onnxruntime",
    )
    assert config.max_batch_size == 64
    assert [(t.name, t.data_type, [*t.dims]) for t in config.input] == [("x", 11, [64])]
    assert [(t.name, t.data_type, [*t.dims]) for t in config.output] == [("y", 11, [8])]
    assert config.dynamic_batching.max_queue_delay_microseconds == 100
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 1024
    assert [(group.kind, group.count) for group in config.instance_group] == [(2, 1)]


def test_what_clients_are_told_gives_the_same_model_back():
    assert config_pbtxt.apply(MLP, config_pbtxt.describe(MLP), "told") == MLP


def test_a_model_batched_along_other_axes_is_described_whole():
    config = config_pbtxt.describe(VAD)
    assert config.max_batch_size == 0
    assert [[*tensor.dims] for tensor in config.input] == [[-1, -1], [2, -1, 128], []]
    assert {key: value.string_value for key, value in config.parameters.items()} == {
        "batch_axis.input": "0",
        "batch_axis.state": "1",
        "batch_axis.sr": "none",
        "batch_axis.output": "0",
        "batch_axis.stateN": "1",
    }


RANKS = msgspec.structs.replace(
    MLP,
    inputs=(TensorSpec("x", "FP32", (-1, 8, -1, 6), batch_axis=0),),
    outputs=(TensorSpec("y", "FP32", (-1,), batch_axis=0),),
)


def test_clients_may_see_another_shape_than_the_model(apply):
    spec = apply(
        """
        max_batch_size: 4
        input { name: "x" dims: [2, 4, -1, 1, 6] reshape { shape: [8, -1, 6] } }
        output { name: "y" dims: [1] reshape { shape: [] } }
        """,
        RANKS,
    )
    assert (spec.inputs[0].shape, spec.inputs[0].reshape) == ((-1, 2, 4, -1, 1, 6), (-1, 8, -1, 6))
    assert (spec.outputs[0].shape, spec.outputs[0].reshape) == ((-1, 1), (-1,))
    told = config_pbtxt.describe(spec)
    assert ([*told.input[0].dims], [*told.input[0].reshape.shape]) == ([2, 4, -1, 1, 6], [8, -1, 6])
    assert ([*told.output[0].dims], told.output[0].HasField("reshape")) == ([1], True)
    assert config_pbtxt.apply(RANKS, told, "told") == spec


def test_a_model_that_is_not_batched_may_be_reshaped_whole(apply):
    """As densenet_onnx is, the first example of Triton's documentation."""
    fixed = msgspec.structs.replace(
        unproven(MLP),
        inputs=(TensorSpec("data_0", "FP32", (1, 3, 224, 224)),),
        outputs=(TensorSpec("fc6_1", "FP32", (1, 1000, 1, 1)),),
    )
    text = """
        max_batch_size: 0
        input { name: "data_0" format: FORMAT_NCHW dims: [3, 224, 224]
            reshape { shape: [1, 3, 224, 224] } }
        output { name: "fc6_1" dims: [1000] reshape { shape: [1, 1000, 1, 1] } }
    """
    spec = apply(text, fixed)
    assert (spec.inputs[0].shape, spec.outputs[0].shape) == ((3, 224, 224), (1000,))
    assert (spec.inputs[0].reshape, spec.outputs[0].reshape) == (
        fixed.inputs[0].shape,
        fixed.outputs[0].shape,
    )
    # Whole shapes switch batching off even where no batch size is given.
    text = "input { name: 'x' dims: [64] reshape { shape: [1, 64] } }"
    assert apply(text).inputs[0].reshape == (1, 64)
    assert apply(text).batch.max_batch_size == 0


@pytest.mark.parametrize(
    ("dims", "shape"),
    [("2, 4, -1, 6", "4, -1, 12"), ("-1, 8", "8, -1"), ("-1, -1", "-1"), ("2", "")],
)
def test_sizes_that_vary_must_be_told_apart(apply, dims, shape):
    known = tuple(int(size) for size in shape.split(",") if size)
    spec = msgspec.structs.replace(MLP, inputs=(TensorSpec("x", "FP32", (-1, *known), 0),))
    text = f"max_batch_size: 4 input {{ name: 'x' dims: [{dims}] reshape {{ shape: [{shape}] }} }}"
    with pytest.raises(ConfigError, match="as many elements, and as many -1"):
        apply(text, spec)


def test_a_reshape_needs_the_batch_axis_to_be_the_first(apply):
    text = "input { name: 'state' dims: [256] reshape { shape: [2, 128] } }"
    with pytest.raises(ConfigError, match="reshape needs the batch axis to be the first, but it"):
        apply(text, VAD)


def test_inputs_with_a_value_in_the_file_are_served_where_they_are_named(apply):
    scale = TensorSpec("scale", "FP32", (1,))
    shift = TensorSpec("shift", "FP32", (-1, 1))
    whole = msgspec.structs.replace(MLP, defaulted=(scale, shift))
    assert apply("", whole) == MLP
    named = apply("input { name: 'scale' dims: [1] }", whole)
    assert named.inputs == (*MLP.inputs, scale)
    spec = apply(
        "max_batch_size: 8 input { name: 'scale' optional: true } "
        "input { name: 'shift' dims: [1] optional: true }",
        whole,
    )
    assert [(each.name, each.optional, each.batch_axis) for each in spec.inputs] == [
        ("x", False, 0),
        ("scale", True, None),
        ("shift", True, 0),
    ]
    with pytest.raises(ConfigError, match=r"without it: .* it has values for scale, shift"):
        apply("input { name: 'x' optional: true }", whole)


def test_strings_have_the_configurations_own_name():
    spec = msgspec.structs.replace(MLP, inputs=(TensorSpec("t", "BYTES", (-1,), 0),))
    assert config_pbtxt.describe(spec).input[0].data_type == 13
