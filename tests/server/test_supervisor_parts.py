"""The supervisor's small parts: processors, ports, back-off, the run folder."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ds_engines.errors import ConfigError
from ds_serve import run_folder
from ds_serve.supervisor import cpus, ports
from ds_serve.supervisor.backoff import LONGEST_DELAY, MOST_CRASHES, STEADY_AFTER, Backoff


def mask() -> int:
    return len(os.sched_getaffinity(0))


class TestProcessors:
    def test_without_a_quota_the_affinity_mask_counts(self, tmp_path: Path) -> None:
        assert cpus.available(tmp_path) == mask()
        (tmp_path / "cpu.max").write_text("max 100000\n")
        assert cpus.available(tmp_path) == mask()

    def test_a_quota_bounds_them(self, tmp_path: Path) -> None:
        (tmp_path / "cpu.max").write_text("100000 100000\n")
        assert cpus.available(tmp_path) == 1

    def test_a_quota_below_one_still_leaves_one(self, tmp_path: Path) -> None:
        (tmp_path / "cpu.max").write_text("20000 100000\n")
        assert cpus.available(tmp_path) == 1

    def test_a_quota_above_the_machine_changes_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "cpu.max").write_text("99900000 100000\n")
        assert cpus.available(tmp_path) == mask()

    def test_the_first_version_of_control_groups_counts_too(self, tmp_path: Path) -> None:
        (tmp_path / "cpu").mkdir()
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("100000\n")
        (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
        assert cpus.available(tmp_path) == 1

    @pytest.mark.parametrize(("workers", "each"), [(1, 8), (2, 4), (3, 2), (9, 1), (0, 8)])
    def test_workers_share_them(self, workers: int, each: int) -> None:
        assert cpus.share(8, workers) == each


class TestPorts:
    def test_port_0_becomes_a_real_one(self) -> None:
        with ports.hold("127.0.0.1", 0, "--http-port") as held:
            assert held.getsockname()[1] > 0

    def test_a_held_port_can_be_shared_by_those_who_ask_for_it(self) -> None:
        with ports.hold("127.0.0.1", 0, "--http-port") as held, socket.socket() as gateway:
            gateway.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            gateway.bind(held.getsockname())
            gateway.listen()
            with socket.create_connection(held.getsockname(), timeout=5):
                gateway.accept()[0].close()

    def test_a_port_in_use_is_named_with_its_flag(self) -> None:
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            with pytest.raises(ConfigError, match=rf"{port} .* in use.*--grpc-port"):
                ports.hold("127.0.0.1", port, "--grpc-port")

    def test_a_second_server_does_not_share_the_port_unnoticed(self) -> None:
        with ports.hold("127.0.0.1", 0, "--http-port") as held, socket.socket() as gateway:
            gateway.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            gateway.bind(held.getsockname())
            gateway.listen()
            with pytest.raises(ConfigError, match="in use"):
                ports.hold("127.0.0.1", held.getsockname()[1], "--http-port")

    def test_an_address_that_is_not_ours_is_named(self) -> None:
        with pytest.raises(ConfigError, match=r"192\.0\.2\.1.*--host"):
            ports.hold("192.0.2.1", 0, "--http-port")


class TestBackoff:
    def test_delays_double_up_to_a_limit_and_then_end(self) -> None:
        backoff = Backoff()
        delays = [backoff.after(0.0) for _ in range(MOST_CRASHES)]
        assert delays[-1] is None
        waits = [delay for delay in delays if delay is not None]
        assert waits == sorted(waits)
        assert waits[1] == 2 * waits[0]
        assert max(waits) <= LONGEST_DELAY

    def test_a_steady_life_forgives_earlier_crashes(self) -> None:
        backoff = Backoff()
        first = backoff.after(0.0)
        for _ in range(MOST_CRASHES - 2):
            backoff.after(0.0)
        assert backoff.after(STEADY_AFTER + 1) == first


class TestRunFolder:
    @pytest.fixture(autouse=True)
    def base(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        """Its path is short, as those of sockets in it must be."""
        with tempfile.TemporaryDirectory(prefix="parts-", dir="/tmp") as folder:
            monkeypatch.setattr("tempfile.tempdir", folder)
            yield Path(folder)

    def test_it_is_private_and_goes_at_the_end(self) -> None:
        with run_folder.run_folder() as folder:
            assert folder.stat().st_mode & 0o077 == 0
            (folder / "socket").touch()
        assert not folder.exists()

    def test_what_a_killed_server_left_is_swept(self, base: Path) -> None:
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        left = base / f"{run_folder.PREFIX}{dead.pid}-abc"
        left.mkdir()
        (left / "socket").touch()
        alive = base / f"{run_folder.PREFIX}{os.getpid()}-abc"
        alive.mkdir()
        other = base / "something-else"
        other.mkdir()
        with run_folder.run_folder():
            assert not left.exists()
            assert alive.exists()
            assert other.exists()
