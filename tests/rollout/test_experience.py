"""From scored episodes to rows: who is compared with whom, what carries loss, and that ranks agree."""

import pytest

from osim_core.missing import Missing
from osim_core.rollout.experience import Experience, TokenSequence
from osim_core.update.algorithms import ALGORITHMS
from tests.rollout.experience_cases import updates

SETTINGS = {"updates": 1, "sequence_length": 64, "longest_reply": 8, "streams": ("policy",)}


def sequence(prompt: list[int], reply: list[int], others: tuple[int, ...] = ()) -> TokenSequence:
    is_policy = tuple(index not in others for index in range(len(reply)))
    return TokenSequence(tuple(prompt), tuple(reply), is_policy, tuple(-0.5 * own for own in is_policy))


def episode(sample: str, replica: int, reward, *sequences: TokenSequence) -> Experience:
    return Experience("task", sample, replica, reward, 3, sequences)


EPISODES = [
    episode("s1", 0, 1.0, sequence([1, 2, 3], [10, 11, 12], others=(1,))),
    episode("s1", 1, 0.0, sequence([1, 2, 3], [20, 21])),
    episode("s1", 2, Missing("judge timeout"), sequence([1, 2, 3], [30])),
    episode("s2", 0, 0.4, sequence([4, 5], [40]), sequence([6], [41, 42])),
    episode("s2", 1, 0.8, sequence([4, 5], [50, 51]), sequence([6], [52])),
    episode("s3", 0, 0.5, sequence([7], [60])),
    episode("s3", 1, 0.5, sequence([7], [61])),
]


def carried(rows: list) -> dict[int, tuple[float, float]]:
    """Target token -> (weight, advantage) of every target that carries loss."""
    found = {}
    for row in rows:
        for label, weight, advantage in zip(
            row.labels_T.tolist(), row.weights["policy"].tolist(), row.policy.advantages_T.tolist(), strict=True
        ):
            if weight:
                found[label] = (weight, advantage)
    return found


def test_groups_are_samples_and_what_others_wrote_or_has_no_reward_carries_no_loss(workers):
    [(_, built)] = workers(1).run(updates, parts=[EPISODES], algorithm=ALGORITHMS["dr-grpo"], **SETTINGS)
    tokens = 2 + 2 + 1 + 2 + 2 + 1 + 1 + 1
    factor = tokens / (8 * 8)  # constant normaliser: longest reply x replies, of which there are 8 sequences
    expected = {
        **dict.fromkeys((10, 12), 0.5), **dict.fromkeys((20, 21), -0.5),
        **dict.fromkeys((40, 41, 42), -0.2), **dict.fromkeys((50, 51, 52), 0.2), 60: 0.0, 61: 0.0,
    }  # fmt: skip
    found = carried(built.rows[0])
    assert found.keys() == expected.keys()
    for token, advantage in expected.items():
        assert found[token] == pytest.approx((1.0, advantage * factor), abs=1e-6), token
    assert (built.groups, built.uniform, built.missing) == (3, 1, {"judge timeout": 1})


def test_dynamic_sampling_leaves_out_groups_that_agree_and_sequence_weights_are_one_over_length(workers):
    [(_, dapo)] = workers(1).run(updates, parts=[EPISODES], algorithm=ALGORITHMS["dapo"], **SETTINGS)
    assert carried(dapo.rows[0]).keys() == {10, 12, 20, 21, 40, 41, 42, 50, 51, 52} and dapo.tokens == 10
    [(_, grpo)] = workers(1).run(updates, parts=[EPISODES], algorithm=ALGORITHMS["grpo"], **SETTINGS)
    weights = {token: weight for token, (weight, _) in carried(grpo.rows[0]).items()}
    assert weights == {
        10: 0.5,
        12: 0.5,
        20: 0.5,
        21: 0.5,
        40: 1,
        41: 0.5,
        42: 0.5,
        50: 0.5,
        51: 0.5,
        52: 1,
        60: 1,
        61: 1,
    }


def test_ranks_agree_on_everything_and_share_the_rows(workers):
    [(_, alone)] = workers(1).run(updates, parts=[EPISODES], algorithm=ALGORITHMS["grpo"], **SETTINGS)
    parts = [EPISODES[1::2], EPISODES[::2]]
    settings = {**SETTINGS, "sequence_length": 12}
    results = workers(2).run(updates, parts=parts, algorithm=ALGORITHMS["grpo"], **settings)
    (first, one), (second, two) = results
    assert first == second == sorted(EPISODES, key=lambda e: (e.task, e.sample, e.replica))
    assert len(one.rows[0]) == len(two.rows[0]) > 0
    assert {**carried(one.rows[0]), **carried(two.rows[0])} == carried(alone.rows[0])


def test_several_updates_hold_whole_groups_each_and_may_be_empty(workers):
    settings = {**SETTINGS, "updates": 4}
    [(_, built)] = workers(1).run(updates, parts=[EPISODES], algorithm=ALGORITHMS["grpo"], **settings)
    assert [sorted(carried(rows)) for rows in built.rows] == [[10, 12, 20, 21], [40, 41, 42, 50, 51, 52], [60, 61], []]
