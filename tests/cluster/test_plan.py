"""What --cluster makes of the other flags, told without a cluster."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

import onnx_models
import pretended
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
def chat(tmp_path: Path) -> Path:
    return pretended.model(tmp_path / "chat")


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

    def test_gpus_are_counted_by_model(self, model: Path, chat: Path) -> None:
        settings = Settings(cluster=CLUSTER, device="cuda", tensor_parallel=4, replicas=2)
        assert job(settings, str(model)).gpus == 1, "of a tensor model"
        assert job(settings, str(chat)).gpus == 8
        assert job(settings, f"{chat}?tensor_parallel=2&pipeline_parallel=2").gpus == 8
        assert job(settings, f"{chat}?device=cpu").gpus == 0
        assert job(Settings(cluster=CLUSTER), str(chat)).gpus == 0

    def test_what_else_is_reserved(self, model: Path) -> None:
        said = ("GPU=0.5", "CPU=3", "accelerator_type:H100=0.001")
        found = job(Settings(cluster=CLUSTER, cluster_resources=said), str(model))
        assert (found.gpus, found.cpus) == (0.5, 3)
        assert found.resources == {"accelerator_type:H100": 0.001}

    def test_settings_of_a_model_s_own_go_with_its_whole_path(
        self, chat: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(chat.parent)
        found = job(Settings(cluster=CLUSTER), "big=chat?tensor_parallel=2")
        assert found.model == f"big={chat}?tensor_parallel=2"

    def test_vllm_over_several_nodes_reserves_its_gpus_itself(self, chat: Path) -> None:
        """Neither vLLM nor a GPU is on the machine that answers."""
        executor = ("--distributed-executor-backend", "ray")
        settings = Settings(
            cluster=CLUSTER, engine="vllm", device="cuda", tensor_parallel=8, vllm_args=executor
        )
        for each in (str(chat), "org/chat-405b"):
            found = job(settings, each)
            assert (found.gpus, found.spans) == (0, True)
            assert found.arguments[-3:] == ("--", *executor)

    def test_a_device_says_that_vllm_runs_it(self, chat: Path) -> None:
        settings = Settings(cluster=CLUSTER, device="cuda", vllm_args=("--max-num-seqs=8",))
        assert "--max-num-seqs=8" in job(settings, str(chat)).arguments
        assert not job(settings, str(chat)).spans

    def test_flags_of_vllm_that_no_model_takes(self, model: Path) -> None:
        settings = Settings(cluster=CLUSTER, vllm_args=("--max-num-seqs=8",))
        with pytest.raises(ConfigError, match="-- --max-num-seqs=8: it is for vLLM, which no"):
            plan.sources(settings, [str(model)])

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"cluster_replicas": "4:1"}, "--cluster-replicas is '4:1'"),
            ({"cluster_replicas": "some"}, "--cluster-replicas is 'some'"),
            ({"model_repository": ("models",)}, "--model-repository does not go with --cluster"),
            ({"model_control_mode": "explicit"}, "--model-control-mode explicit"),
            ({"device": "cuda:1"}, "--device cuda:1"),
            ({"cluster_resources": ("GPU",)}, "--cluster-resources GPU: it must be NAME=AMOUNT"),
            ({"cluster_resources": ("GPU=-1",)}, "--cluster-resources GPU=-1"),
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
