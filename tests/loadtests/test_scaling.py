"""How throughput by gateways is measured: who gets which processors, ratios, and one short run."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from loadtests.perf_analyzer import Point
from loadtests.scaling import cpus, results
from loadtests.scaling.__main__ import PAGE, main
from loadtests.scaling.measure import Plan, Sample
from loadtests.scaling.results import Line

needs_wrk = pytest.mark.skipif(not shutil.which("wrk"), reason="apt-get install wrk")


def sample(rate, gateways=(0.5,), workers=(0.5,), client=0.5, server=0.5):
    return Sample(Point(rate, 2000, 9000), gateways, workers, client, server, stolen=0.0)


def line(models, gateways, *rates):
    return Line(models, gateways, [sample(rate) for rate in rates])


def test_processors_are_read_as_the_kernel_writes_them():
    assert cpus.parse("0-3,8") == {0, 1, 2, 3, 8}
    assert cpus.parse("5") == {5}


@pytest.mark.parametrize("text", ["", "a", "1-", "1,,2"])
def test_what_is_no_list_of_processors_is_an_error(text):
    with pytest.raises(ValueError, match="0-3,8 is one"):
        cpus.parse(text)


def test_threads_of_one_core_stay_together(tmp_path):
    ours = sorted(os.sched_getaffinity(0))
    for cpu in ours:
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(",".join(map(str, ours)) + "\n")
    assert cpus.cores(tmp_path) == [frozenset(ours)]
    assert cpus.cores(tmp_path / "none") == [frozenset({cpu}) for cpu in ours]


def test_a_quarter_of_the_cores_is_for_the_client():
    pairs = [frozenset({n, n + 8}) for n in range(8)]
    server, client = cpus.divide(pairs)
    assert client == {6, 7, 14, 15}
    assert server == set(range(16)) - client
    assert cpus.divide([frozenset({0}), frozenset({1})]) == ({0}, {1})
    assert cpus.divide([frozenset({0})]) == ({0}, {0})


def test_each_model_has_as_many_threads_of_the_client():
    plan = Plan(48, 5, frozenset({0}), frozenset({1, 2, 3, 4}))
    assert [plan.threads(models) for models in (1, 2, 3, 8)] == [4, 4, 6, 8]


def test_rates_are_compared_with_the_fewest_gateways():
    lines = [line(1, 1, 100, 90, 500), line(1, 4, 200), line(4, 1, 80), line(4, 4, 320)]
    found = [dict(zip(results.COLUMNS, row, strict=True)) for row in results.rows(lines)]
    assert [row["ratio"] for row in found] == ["1.00", "2.00", "1.00", "4.00"]
    assert [row["efficiency"] for row in found] == ["100%", "50%", "100%", "100%"]
    assert [row["of the best"] for row in found] == ["100%", "50%", "80%", "80%"]
    assert (found[0]["lowest"], found[0]["req/s"], found[0]["highest"]) == ("90", "100", "500")


@pytest.mark.parametrize(
    ("given", "limit"),
    [
        ({}, "nothing"),
        ({"gateways": (0.95, 0.93)}, "gateways"),
        ({"gateways": (0.95, 0.3)}, "nothing"),
        ({"workers": (0.2, 1.1)}, "worker"),
        ({"client": 0.97, "server": 0.9}, "server's CPUs, wrk"),
    ],
)
def test_what_is_at_its_limit_is_named(given, limit):
    assert Line(1, 2, [sample(100, **given)]).limit == limit


def test_the_table_shows_how_far_processes_differ():
    one = Line(1, 2, [sample(1234.5, gateways=(0.5, 0.7), workers=(0.9,))])
    (cells,) = results.rows([one])
    text = results.markdown([cells], "About.")
    assert text.startswith("About.\n\n| models | gateways | req/s |")
    assert "| 50% to 70% | 90% |" in text
    assert text.count("\n") == 4


@pytest.mark.parametrize(
    "given", [["--gateways", "0"], ["--models", "x"], ["--server-cpus", "1-"], ["--rounds", "-1"]]
)
def test_an_argument_that_cannot_be_is_named(given, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(given)
    assert given[0] in capsys.readouterr().err


@needs_wrk
@pytest.mark.slow
def test_two_gateways_and_two_models_share_the_requests(tmp_path):
    file = tmp_path / "runs.json"
    page = PAGE.read_text()
    sizes = ["--gateways", "1,2", "--models", "2", "--connections", "8"]
    assert main([*sizes, "--seconds", "2", "--rounds", "1", "--json", str(file)]) == 0
    lines = json.loads(file.read_text())["lines"]
    assert [(each["models"], each["gateways"]) for each in lines] == [(2, 1), (2, 2)]
    for each in lines:
        (run,) = each["samples"]
        assert run["point"]["rate"] > 0
        assert len(run["gateways"]) == each["gateways"]
        assert len(run["workers"]) == 2
        assert all(share > 0 for share in run["gateways"] + run["workers"])
    assert PAGE.read_text() == page


@needs_wrk
@pytest.mark.slow
def test_a_server_that_does_not_start_is_no_measurement(tmp_path, capsys):
    file = tmp_path / "runs.json"
    given = ["--gateways", "1", "--models", "1", "--rounds", "1", "--json", str(file)]
    assert main([*given, "--", "--max-batch-size", "0"]) == 1
    assert "--max-batch-size" in capsys.readouterr().out
    assert not file.exists()


@needs_wrk
def test_a_processor_that_is_not_there_is_an_error(capsys):
    assert main(["--server-cpus", "4095", "--client-cpus", "0", "--gateways", "1"]) == 1
    assert "4095" in capsys.readouterr().out
