"""The comparison of gRPC servers: what is compared, and how; it is run by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from loadtests import grpc_servers
from loadtests.peers.base import Setup
from loadtests.peers.workloads import MLP


def test_each_carrier_is_a_ds_serve_with_that_flag(tmp_path: Path) -> None:
    for peer in grpc_servers.peers(grpc_servers.CARRIERS):
        setup = Setup(
            MLP, tmp_path / "mlp.onnx", tmp_path, Path(sys.executable), 1, 2, 2, peer.settings
        )
        command = peer.launch(setup).command
        assert command[0].endswith("/ds-serve")
        assert command[command.index("--grpc-server") + 1] == peer.name
        assert set(grpc_servers.PROTOCOLS) <= set(peer.protocols)


def test_what_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_servers, "find_spec", lambda name: None)
    monkeypatch.setattr("loadtests.peers.environments.installed", lambda key: False)
    assert [peer.name for peer in grpc_servers.peers()] == ["native", "grpcio"]


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert grpc_servers.main(["natve"]) == 1
    assert "natve" in capsys.readouterr().out
