"""Our .proto files say what tritonclient's say, and both can be loaded in one process."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2 as their_config
from tritonclient.grpc import service_pb2 as their_service
from tritonclient.grpc import service_pb2_grpc as their_stubs

from ds_proto import grpc_service_pb2, model_config_pb2
from ds_proto.service import METHODS, SERVICE

ROOT = Path(__file__).resolve().parents[2]
OURS = {"grpc_service": grpc_service_pb2, "model_config": model_config_pb2}
THEIRS = {"grpc_service": their_service, "model_config": their_config}


def contract(module) -> FileDescriptorProto:
    found = FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(found)
    return found


@pytest.mark.parametrize("name", OURS)
def test_the_descriptors_are_the_published_ones(name):
    ours, theirs = contract(OURS[name]), contract(THEIRS[name])
    assert str(ours) == str(theirs)
    assert ours == theirs


def test_the_method_table_holds_every_call_of_the_published_service():
    published = their_service.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert published.full_name == SERVICE
    assert [*METHODS] == [method.name for method in published.methods]
    assert len(METHODS) == 20
    assert METHODS["ModelInfer"].request is grpc_service_pb2.ModelInferRequest
    assert [name for name, method in METHODS.items() if method.arity != "unary_unary"] == [
        "ModelStreamInfer"
    ]


def test_the_method_table_makes_the_calls_that_the_published_stub_makes():
    class Channel:
        """Records what a stub asks a channel for."""

        def __init__(self):
            self.calls = []

        def __getattr__(self, arity):
            return lambda path, **_: self.calls.append((arity, path))

    channel = Channel()
    their_stubs.GRPCInferenceServiceStub(channel)
    assert channel.calls == [(method.arity, method.path) for method in METHODS.values()]


@pytest.mark.parametrize(
    "imports",
    ["import ds_proto.service, tritonclient.grpc", "import tritonclient.grpc, ds_proto.service"],
)
def test_both_contracts_load_in_one_process_in_either_order(imports):
    program = f"""
{imports}
from ds_proto import grpc_service_pb2 as ours
from tritonclient.grpc import service_pb2 as theirs
assert ours.ModelInferRequest is not theirs.ModelInferRequest
assert ours.ModelInferRequest.DESCRIPTOR.file.pool is not theirs.DESCRIPTOR.pool
message = ours.ModelInferRequest(model_name="m", raw_input_contents=[b"1"])
message.parameters["priority"].uint64_param = 1
back = theirs.ModelInferRequest.FromString(message.SerializeToString())
assert str(back) == str(message)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@given(
    name=st.text(),
    shape=st.lists(st.integers(-(2**63), 2**63 - 1)),
    raw=st.lists(st.binary()),
    value=st.floats(allow_nan=False),
)
def test_a_message_of_one_parses_in_the_other(name, shape, raw, value):
    ours = grpc_service_pb2.ModelInferRequest(id=name, raw_input_contents=raw)
    tensor = ours.inputs.add(name=name, shape=shape)
    tensor.contents.fp64_contents.append(value)
    ours.parameters["a"].double_param = value
    theirs = their_service.ModelInferRequest.FromString(ours.SerializeToString())
    assert str(theirs) == str(ours)
    back = grpc_service_pb2.ModelInferRequest.FromString(theirs.SerializeToString())
    assert back == ours


def run_script(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "scripts" / "proto"), "--check"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_stubs_are_current():
    done = run_script(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_stubs_that_are_not_current_are_noticed(tmp_path):
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "proto", tmp_path / "scripts")
    source = tmp_path / "proto" / "grpc_service.proto"
    source.write_text(source.read_text().replace("bool live = 1;", "bool live = 2;"))
    done = run_script(tmp_path)
    assert done.returncode == 1
    assert "+++ generated" in done.stdout
    assert "run scripts/proto" in done.stderr
