"""Dynamic batching in the whole server: the flags, and config.pbtxt beside a model."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from onnx_models import slow
from serving import Server, until
from slow_requests import SECOND, busy, is_right, load, post, statistics, until_waiting

CONFIGS = {
    "four": "max_batch_size: 4",
    "delayed": """max_batch_size: 8
        dynamic_batching { max_queue_delay_microseconds: 60000000 }""",
    "preferred": """max_batch_size: 64
        dynamic_batching {
          preferred_batch_size: [ 2, 3 ]
          max_queue_delay_microseconds: 60000000
        }""",
    "short": """max_batch_size: 1
        dynamic_batching { default_queue_policy { max_queue_size: 2 } }""",
    "two": "max_batch_size: 8 instance_group [ { count: 2 } ]",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batching")
    flags = ["--max-batch-size", "16", "--model", slow(folder / "plain.onnx")]
    for name, config in CONFIGS.items():
        slow(folder / name / "model.onnx")
        (folder / name / "config.pbtxt").write_text(config)
        flags += ["--model", folder / name]
    with Server(*flags) as server:
        yield server


def _counts(server, model):
    found = statistics(server, model)
    return found["inference_count"], found["execution_count"]


def _batches(server, model):
    """How many executions there were of each number of rows."""
    return {
        batch["batch_size"]: batch["compute_infer"]["count"]
        for batch in statistics(server, model)["batch_stats"]
    }


def test_64_concurrent_requests_share_batches_of_max_batch_size(server):
    with ThreadPoolExecutor(64) as pool:
        with busy(server, model="plain"):
            queued = [pool.submit(post, server, model="plain") for _ in range(64)]
            until_waiting(server, 64, "plain")
        assert all(is_right(answer.result()) for answer in queued)
    assert _counts(server, "plain") == (65, 5)
    assert _batches(server, "plain") == {1: 1, 16: 4}


def test_batches_form_by_themselves_under_load(server):
    """With no delay set: what arrives while a batch runs is the next batch."""
    rows, executions = _counts(server, "plain")
    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(lambda _: post(server, 20, model="plain"), range(640)))
    assert all(is_right(answer) for answer in answers)
    after = _counts(server, "plain")
    assert after[0] - rows == 640
    assert after[1] - executions < 640 / 2


def test_config_bounds_the_batch(server):
    with ThreadPoolExecutor(10) as pool:
        with busy(server, model="four"):
            queued = [pool.submit(post, server, model="four") for _ in range(10)]
            until_waiting(server, 10, "four")
        assert all(is_right(answer.result()) for answer in queued)
    assert _batches(server, "four") == {1: 1, 2: 1, 4: 2}
    refused = post(server, model="four", rows=5)
    assert refused.status_code == 400
    assert "1 to 4" in refused.json()["error"]


def test_requests_of_several_rows_are_counted_by_rows(server):
    before = _batches(server, "four")
    with ThreadPoolExecutor(3) as pool:
        with busy(server, model="four"):
            queued = [pool.submit(post, server, model="four", rows=n) for n in (3, 3, 3)]
            until_waiting(server, 3, "four")
        assert all(is_right(answer.result(), 3) for answer in queued)
    after = _batches(server, "four")
    assert after[3] == before.get(3, 0) + 3, "two of them would have been six rows"


def test_config_delays_until_the_batch_is_full(server):
    with ThreadPoolExecutor(8) as pool:
        first = [pool.submit(post, server, model="delayed") for _ in range(7)]
        until_waiting(server, 7, "delayed")
        assert not any(answer.done() for answer in first)
        assert is_right(post(server, model="delayed"))
        assert all(is_right(answer.result()) for answer in first)
    assert _batches(server, "delayed") == {8: 1}


def test_config_prefers_batch_sizes_over_the_delay(server):
    with ThreadPoolExecutor(3) as pool:
        lone = pool.submit(post, server, model="preferred")
        until_waiting(server, 1, "preferred")
        assert not lone.done()
        assert is_right(post(server, model="preferred"))
        assert is_right(lone.result())
        assert _batches(server, "preferred") == {2: 1}


def test_config_bounds_the_queue(server):
    with ThreadPoolExecutor(2) as pool:
        with busy(server, model="short"):
            queued = [pool.submit(post, server, model="short") for _ in range(2)]
            until_waiting(server, 2, "short")
            refused = post(server, model="short")
        assert all(is_right(answer.result()) for answer in queued)
    assert refused.status_code == 503
    assert "max_queue_size is 2" in refused.json()["error"]


def test_two_instances_run_two_batches_at_once(server):
    with busy(server, model="two") as first, busy(server, SECOND + 1, "two") as second:
        until(lambda: load(server, "two") == 2 / (2 * 8), "not both were taken")
        until_waiting(server, 0, "two")
        assert not first.done()
        assert not second.done()
        third = post(server, timeout=200_000, model="two")
    assert third.status_code == 504, "there are no more than two"
    assert is_right(first.result())
    assert is_right(second.result())


@pytest.mark.slow
def test_delay_flag_joins_what_comes_meanwhile(tmp_path):
    flags = ["--max-batch-size", "3", "--batch-delay-us", "60000000"]
    with (
        Server("--model", slow(tmp_path / "slow.onnx"), *flags) as server,
        ThreadPoolExecutor(2) as pool,
    ):
        waiting = [pool.submit(post, server) for _ in range(2)]
        until_waiting(server, 2)
        assert not any(answer.done() for answer in waiting)
        assert is_right(post(server))
        assert all(is_right(answer.result()) for answer in waiting)
        assert _batches(server, "slow") == {3: 1}


@pytest.mark.slow
def test_long_batch_after_quick_ones_does_not_stop_the_scheduler(server):
    """A quick engine runs where the queue is kept; what was quick need not be so again."""
    for _ in range(3):
        assert is_right(post(server, 0, model="plain"))
    with ThreadPoolExecutor(1) as pool, busy(server, model="plain") as running:
        queued = pool.submit(post, server, model="plain", timeout=200_000)
        until_waiting(server, 1, "plain")
        until_waiting(server, 0, "plain")
        assert queued.result().status_code == 504
        assert not running.done()
