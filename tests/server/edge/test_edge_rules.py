"""What --escalate says, and what is wrong with it."""

from __future__ import annotations

import pytest

from ds_engines.errors import ConfigError
from ds_serve.edge.rules import Rule, check, rules


def test_a_classifier_s_and_a_text_model_s() -> None:
    found = rules(["small=big?below=0.9&output=p&within=0.5", "chat=far?tokens=100&refusal=a%2Bb"])
    assert found == {
        "small": Rule(to="big", below=0.9, output="p", within=0.5),
        "chat": Rule(to="far", tokens=100, refusal="a+b"),
    }
    assert found["small"].seconds == 0.5
    assert found["chat"].seconds == 30


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("small=big", "it must be MODEL=OTHER?below=0.9"),
        ("small=big?below", "KEY=VALUE"),
        ("small=big?above=0.9", "no setting is called 'above'; of below, output"),
        ("small=big?below=much", "float"),
        ("small=big?below=1.5", "below is 1.5; it must be above 0 and at most 1"),
        ("small=big?output=p", "below is 0; it must be above 0"),
        ("small=big?within=1", "say when the other is asked"),
        ("small=big?below=0.5&tokens=3", "say when the other is asked"),
        ("small=big?below=0.5&scores=odds", "scores"),
        ("small=big?refusal=(", "refusal is no regular expression"),
        ("small=big?tokens=-1", "must be 0 or more"),
    ],
)
def test_a_rule_that_cannot_be_says_why(argument: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        rules([argument])
    assert said in str(raised.value)
    assert str(raised.value).startswith(f"--escalate {argument}: ")


def test_two_rules_of_one_model_and_a_circle_are_refused() -> None:
    with pytest.raises(ConfigError, match="a escalates to b already"):
        rules(["a=b?below=0.5", "a=c?below=0.5"])
    with pytest.raises(ConfigError, match="in a circle: a -> b -> a"):
        rules(["a=b?below=0.5", "b=a?below=0.5"])


def test_models_must_be_there_and_of_the_rule_s_kind() -> None:
    tasks = {"small": "tensor", "big": "tensor", "chat": "text"}
    check(["small=big?below=0.5"], tasks, open_ended=False)
    check(["small=later?below=0.5"], tasks, open_ended=True)
    with pytest.raises(ConfigError, match="no model 'later'; there are: big, chat, small"):
        check(["small=later?below=0.5"], tasks, open_ended=False)
    with pytest.raises(ConfigError, match="chat is a text model, whose rule says tokens"):
        check(["small=chat?below=0.5"], tasks, open_ended=False)
    with pytest.raises(ConfigError, match="small is a tensor model, whose rule says below"):
        check(["small=big?tokens=5"], tasks, open_ended=False)
