"""Which steps run, and in which order, of ensembles of any shape."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ds_engines.spec import Step
from ds_serve.ensemble.plan import Progress, cycle, make, makers

DIAMOND = (
    Step("join", inputs=(("l", "b"), ("r", "c")), outputs=(("y", "sum"),)),
    Step("left", inputs=(("x", "a"),), outputs=(("y", "b"),)),
    Step("right", inputs=(("x", "a"),), outputs=(("y", "c"), ("z", "unused"))),
    Step("fork", inputs=(("x", "x"),), outputs=(("y", "a"),)),
)


def test_diamond() -> None:
    plan = make(DIAMOND, ["sum"], ["x"])
    progress = Progress(plan)
    assert progress.start(["x"]) == [3]
    assert progress.arrive(["a"]) == [1, 2], "side by side"
    assert progress.arrive(["c"]) == []
    assert progress.arrive(["b"]) == [0]
    assert plan.parts[2].outputs == (("y", "c"),), "what nobody reads is not asked for"


def test_steps_that_are_not_needed_are_left_out() -> None:
    assert sorted(make(DIAMOND, ["b"], ["x"]).parts) == [1, 3]


def test_input_that_is_left_out_is_not_waited_for() -> None:
    step = Step("m", inputs=(("x", "x"), ("mask", "mask")), outputs=(("y", "y"),))
    plan = make([step], ["y"], ["x"])
    assert plan.parts[0].inputs == (("x", "x"),)
    assert Progress(plan).start(["x"]) == [0]
    only = Step("m", inputs=(("mask", "mask"),), outputs=(("y", "y"),))
    assert Progress(make([only], ["y"], [])).start([]) == [0]


def test_one_tensor_for_two_inputs() -> None:
    step = Step("m", inputs=(("a", "x"), ("b", "x")), outputs=(("y", "y"),))
    assert Progress(make([step], ["y"], ["x"])).start(["x"]) == [0]


def test_cycle() -> None:
    steps = (
        Step("a", inputs=(("x", "from c"), ("z", "x")), outputs=(("y", "from a"),)),
        Step("b", inputs=(("x", "from a"),), outputs=(("y", "from b"),)),
        Step("c", inputs=(("x", "from b"),), outputs=(("y", "from c"),)),
        Step("d", inputs=(("x", "from c"),), outputs=(("y", "from d"),)),
    )
    found = cycle(steps)
    assert sorted(found) == [0, 1, 2]
    for one, other in zip(found, [*found[1:], found[0]], strict=True):
        assert steps[one].outputs[0][1] in {tensor for _, tensor in steps[other].inputs}
    assert cycle(DIAMOND) == []


@st.composite
def acyclic(draw: st.DrawFn) -> tuple[Step, ...]:
    """Steps in any order, each of which reads inputs or what earlier ones make."""
    there = ["x0", "x1"]
    steps = []
    for index in range(draw(st.integers(1, 7))):
        read = draw(st.lists(st.sampled_from(there), min_size=1, max_size=3))
        made = [f"t{index}.{number}" for number in range(draw(st.integers(1, 2)))]
        inputs = tuple((f"i{number}", tensor) for number, tensor in enumerate(read))
        steps.append(Step(f"m{index}", "", inputs, tuple((name, name) for name in made)))
        there += made
    return tuple(draw(st.permutations(steps)))


@given(acyclic(), st.data())
def test_each_needed_step_begins_once_and_after_what_it_reads(steps, data) -> None:
    assert cycle(steps) == []
    made_by = makers(steps)
    outputs = data.draw(st.lists(st.sampled_from(sorted(made_by)), min_size=1, unique=True))
    plan = make(steps, outputs, ["x0", "x1"])
    progress = Progress(plan)
    there = {"x0", "x1"}
    running = progress.start(there)
    begun: list[int] = []
    while running:
        index = running.pop(data.draw(st.integers(0, len(running) - 1)))
        assert {tensor for _, tensor in plan.parts[index].inputs} <= there
        begun.append(index)
        new = [tensor for _, tensor in plan.parts[index].outputs]
        there |= set(new)
        running += progress.arrive(new)
    assert sorted(begun) == sorted(plan.parts)
    assert set(outputs) <= there
    useful = set(outputs) | {t for part in plan.parts.values() for _, t in part.inputs}
    for index, part in plan.parts.items():
        assert part.outputs, f"step {index} was not needed"
        assert {tensor for _, tensor in part.outputs} <= useful
