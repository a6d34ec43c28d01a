"""Raw payments to features: the stateful step, and the payments themselves."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from loadtests.models.card_features import FEATURES, LATE, NAMES, STEPS, CardFeatures
from loadtests.models.transactions import DAY, Transaction, distance, stream

NOON = 1_767_268_800.0


def paid(time=NOON, amount=20.0, card=1, **other):
    given = {"category": 0, "country": "DE", "home": "DE", "channel": "chip"} | other
    return Transaction(card=card, time=time, amount=amount, **given)


def row(features, transaction):
    """The features of the newest payment, by name."""
    return dict(zip(NAMES, features.add(transaction)[-1].tolist(), strict=True))


def count(features, transaction):
    """The payments of 24 hours, this one among them."""
    return round(np.expm1(row(features, transaction)["count_24h"]))


def total(found):
    return np.expm1(found["sum_24h"] * 4)


def test_the_window_has_the_last_24_rows_the_newest_last():
    features = CardFeatures()
    first = features.add(paid(amount=1))
    assert first.shape == (STEPS, FEATURES)
    assert first.dtype == np.float32
    assert not first[:-1].any()
    windows = [features.add(paid(NOON + 60 * step, amount=step)) for step in range(2, 40)]
    amounts = np.expm1(windows[-1][:, NAMES.index("amount")] * 4)
    np.testing.assert_allclose(amounts, np.arange(16, 40), rtol=1e-4)
    np.testing.assert_array_equal(windows[-1][:-1], windows[-2][1:])
    np.testing.assert_allclose(first[-1, 0], np.log(2) / 4, rtol=1e-6)


@pytest.mark.parametrize(("gap", "expected"), [(DAY - 1, 2), (DAY, 1), (DAY + 1, 1), (0, 2)])
def test_24_hours_end_to_the_second(gap, expected):
    features = CardFeatures()
    features.add(paid(NOON))
    assert count(features, paid(NOON + gap)) == expected


def test_the_sum_is_that_of_24_hours():
    features = CardFeatures()
    for hours in (0, 10, 20):
        features.add(paid(NOON + hours * 3600, amount=100 + hours))
    found = row(features, paid(NOON + 30 * 3600, amount=7))
    assert total(found) == pytest.approx(110 + 120 + 7, rel=1e-4)


def test_late_payments_count_where_they_belong():
    features = CardFeatures()
    for minutes in (0, 10, 50):
        features.add(paid(NOON + minutes * 60))
    late = row(features, paid(NOON + 20 * 60))
    assert round(np.expm1(late["count_24h"])) == 3
    assert np.expm1(late["since_last"] * 8) == pytest.approx(600, rel=1e-3)
    assert count(features, paid(NOON + 51 * 60)) == 5


def test_a_payment_that_is_late_by_an_hour_still_has_its_whole_24_hours():
    features = CardFeatures()
    features.add(paid(NOON))
    features.add(paid(NOON + DAY - 1 + LATE))
    assert count(features, paid(NOON + DAY - 1)) == 2


def test_the_order_within_the_late_hour_does_not_change_the_next_row():
    times = [NOON + minutes * 60 for minutes in (0, 5, 15, 30, 45)]
    rows = []
    for order in itertools.permutations(times):
        features = CardFeatures()
        for time in order:
            features.add(paid(time))
        rows.append(features.add(paid(NOON + DAY))[-1])
    assert len({each.tobytes() for each in rows}) == 1
    assert round(np.expm1(rows[0][NAMES.index("count_24h")])) == 5


def test_the_deviation_is_that_from_the_payments_before():
    features = CardFeatures()
    amounts = [10.0, 12.0, 17.0, 9.0]
    assert row(features, paid(amount=amounts[0]))["deviation"] == 0
    for step, amount in enumerate(amounts[1:], 1):
        features.add(paid(NOON + step, amount=amount))
    found = row(features, paid(NOON + 10, amount=20.0))
    expected = (20 - np.mean(amounts)) / np.std(amounts, ddof=1)
    assert found["deviation"] == pytest.approx(expected, rel=1e-5)
    assert found["times_mean"] == pytest.approx(np.log(21 / (np.mean(amounts) + 1)), rel=1e-5)


def test_the_deviation_of_equal_amounts_is_bounded():
    features = CardFeatures()
    for step in range(5):
        assert row(features, paid(NOON + step, amount=10))["deviation"] == 0
    assert row(features, paid(NOON + 9, amount=1e9))["deviation"] == 10


def test_the_time_since_the_last_payment_is_known_after_days_too():
    features = CardFeatures()
    features.add(paid(NOON))
    features.add(paid(NOON + 3 * DAY))
    found = row(features, paid(NOON + 13 * DAY))
    assert np.expm1(found["since_last"] * 8) == pytest.approx(10 * DAY, rel=1e-3)
    assert round(np.expm1(found["count_24h"])) == 1


def test_speed_is_the_way_by_the_time():
    features = CardFeatures()
    features.add(paid(NOON, country="DE"))
    found = row(features, paid(NOON + 7200, country="JP"))
    assert np.expm1(found["speed"] * 4) == pytest.approx(distance("DE", "JP") / 2, rel=1e-3)
    assert found["abroad"] == 1
    assert 8_000 < distance("DE", "JP") < 10_000
    at_once = row(features, paid(NOON + 7200, country="DE"))
    assert np.isfinite(at_once["speed"])


def test_cards_do_not_touch_each_other():
    alone, together = CardFeatures(), CardFeatures()
    for step in range(30):
        expected = alone.add(paid(NOON + step, amount=step))
        together.add(paid(NOON + step, amount=999, card=2))
        np.testing.assert_array_equal(together.add(paid(NOON + step, amount=step)), expected)


def test_the_card_that_was_idle_longest_makes_way():
    features = CardFeatures(cards=2)
    for card in (1, 2, 1, 3):
        features.add(paid(card=card))
    assert (1 in features, 2 in features, 3 in features) == (True, False, True)
    assert len(features) == 2
    assert count(features, paid(NOON + 1, card=2)) == 1


def test_payments_of_a_card_are_bounded():
    features = CardFeatures(payments=5)
    counts = [count(features, paid(NOON + step)) for step in range(20)]
    assert counts[:6] == [1, 2, 3, 4, 5, 6]
    assert set(counts[6:]) == {6}


def test_idle_cards_are_let_go_by_the_time_that_is_told():
    features = CardFeatures()
    features.add(paid(NOON, card=1))
    features.add(paid(NOON + 100, card=2))
    assert features.evict(NOON + 50, idle=50) == 0
    assert features.evict(NOON + 51, idle=50) == 1
    assert (1 in features, 2 in features) == (False, True)


@pytest.mark.parametrize("wrong", [{"amount": -1.0}, {"amount": np.inf}, {"time": np.nan}])
def test_impossible_payments_are_refused_by_name(wrong):
    features = CardFeatures()
    with pytest.raises(ValueError, match=r"card 1: time .* and amount .* must be finite"):
        features.add(paid(**wrong))
    assert count(features, paid()) == 1


def made(number=20_000, cards=50, seed=3):
    return list(itertools.islice(stream(cards, seed), number))


def test_the_same_seed_makes_the_same_payments():
    assert made(500) == made(500)
    assert made(500) != made(500, seed=4)


def test_payments_are_in_order_by_card_and_of_a_usual_shape():
    payments = made()
    for card in range(50):
        times = [each.time for each in payments if each.card == card]
        assert times == sorted(times)
        a_day = len(times) / (times[-1] - times[0]) * DAY
        assert 0.2 < a_day < 30
    usual = [each for each in payments if each.fraud is None]
    assert 10 < np.median([each.amount for each in usual]) < 100
    night = np.mean([each.time % DAY < 6 * 3600 for each in usual])
    assert night < 0.1
    assert 0.02 < np.mean([each.country != each.home for each in usual]) < 0.3


def test_a_small_share_is_fraud_of_each_pattern():
    payments = made()
    patterns = [each.fraud for each in payments if each.fraud]
    assert 0.005 < len(patterns) / len(payments) < 0.06
    assert set(patterns) == {"burst", "jump", "travel"}


def test_features_tell_each_pattern_from_the_usual():
    features = CardFeatures()
    found = {None: [], "burst": [], "jump": [], "travel": []}
    for each in made():
        found[each.fraud].append(features.add(each)[-1])
    column = {name: index for index, name in enumerate(NAMES)}
    usual = np.array(found[None])

    def beyond(pattern, name):
        """The share of that fraud above all but a twentieth of the usual payments."""
        line = np.percentile(usual[:, column[name]], 95)
        return np.mean(np.array(found[pattern])[:, column[name]] > line)

    assert beyond("burst", "count_24h") > 0.5
    assert beyond("jump", "times_mean") > 0.95
    assert beyond("travel", "speed") > 0.95
