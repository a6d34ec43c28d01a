"""What --cluster makes of the other flags, told without a cluster."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

import onnx_models
import pytest

from ds_engines.errors import ConfigError
from ds_serve import cli
from ds_serve.cluster import plan
from ds_serve.settings import Settings

CLUSTER = "127.0.0.1:6379"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return onnx_models.mlp(tmp_path / "mlp.onnx")


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray is there, or looks so: nothing here calls it."""
    if find_spec("ray") is None:
        monkeypatch.setitem(sys.modules, "ray", type(sys)("ray"))
        monkeypatch.setattr(sys.modules["ray"], "__spec__", ModuleSpec("ray", None))


def job(settings: Settings, *models: str) -> plan.Job:
    (found,) = plan.jobs(settings, plan.sources(settings, models))
    return found


@pytest.mark.skipif(find_spec("ray") is not None, reason="ray is installed")
def test_ray_is_not_installed(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--cluster", CLUSTER, "--model", str(model)]) == 2
    said = capsys.readouterr().err
    assert said == "ds-serve: --cluster needs the package ray: pip install 'ds-serve[ray]'\n"


@pytest.mark.usefixtures("ray")
class TestSources:
    def test_a_tensor_model(self, model: Path) -> None:
        settings = Settings(cluster=CLUSTER, max_batch_size=8, allow_unverified=True)
        found = job(settings, str(model))
        assert found.name == "mlp"
        assert found.model == f"mlp={model}"
        assert found.base == "/v2"
        assert (found.least, found.most, found.gpus) == (1, 4, 0)
        assert {"--max-batch-size=8", "--allow-unverified=true"} <= set(found.arguments)

    def test_flags_of_the_server_that_answers_stay_here(self, model: Path) -> None:
        settings = Settings(cluster=CLUSTER, http_port=9000, host="0.0.0.0", api_keys="keys")
        words = " ".join(job(settings, str(model)).arguments)
        assert "9000" not in words
        assert "0.0.0.0" not in words
        assert "keys" not in words

    def test_a_model_of_another_server_is_no_replicas(self) -> None:
        settings = Settings(cluster=CLUSTER)
        found = plan.sources(settings, ["far=https://example.com/v2"])
        assert plan.jobs(settings, found) == ()

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"cluster_replicas": "4:1"}, "--cluster-replicas is '4:1'"),
            ({"cluster_replicas": "some"}, "--cluster-replicas is 'some'"),
            ({"model_repository": ("models",)}, "--model-repository does not go with --cluster"),
            ({"model_control_mode": "explicit"}, "--model-control-mode explicit"),
            ({"device": "cuda:1"}, "--device cuda:1"),
        ],
    )
    def test_what_cannot_be(self, model: Path, changes: dict[str, object], said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            plan.sources(Settings(cluster=CLUSTER, **changes), [str(model)])  # type: ignore[arg-type]

    def test_two_of_one_name(self, model: Path) -> None:
        with pytest.raises(ConfigError, match="several models are named 'mlp'"):
            plan.sources(Settings(cluster=CLUSTER), [str(model), str(model)])

    def test_a_revision_is_of_the_files(self, model: Path) -> None:
        found = job(Settings(cluster=CLUSTER), str(model))
        before = plan.revision(found)
        assert plan.revision(found) == before
        onnx_models.mlp(model, seed=1)
        assert plan.revision(found) != before
