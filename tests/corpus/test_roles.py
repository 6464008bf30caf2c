"""Role handling is data: exact names, longest prefixes, and what each transform does."""

import pytest

from osim_core.corpus.conversation import Message
from osim_core.corpus.roles import KEPT_TURNS, RoleTable, fold_and_swap, keep, keep_with_system, swap

S, U, A, T = (Message(role, role[0]) for role in ("system", "user", "assistant", "tool"))


def roles(messages):
    return "".join(m.role[0] for m in messages)


def test_swap_trains_the_human_and_hides_what_they_never_saw():
    assert swap((S, U, A, T, A, U)) == (
        S,
        Message("assistant", "u"),
        Message("user", "a"),
        Message("user", "a"),
        Message("assistant", "u"),
    )


def test_swapping_twice_changes_nothing_without_tools():
    assert swap(swap((S, U, A, U))) == (S, U, A, U)


def test_an_empty_system_message_is_added_only_where_none_is():
    assert keep_with_system((U, A)) == (Message("system", ""), U, A)
    assert keep_with_system((S, U, A)) == (S, U, A)


@pytest.mark.parametrize("turns", [1, KEPT_TURNS, KEPT_TURNS + 1, 3 * KEPT_TURNS + 1])
def test_long_records_keep_their_recent_turns_and_every_word(turns):
    stored = (S, *(Message(("assistant", "user")[i % 2], f"<{i}>") for i in range(turns)))
    folded = fold_and_swap(stored)
    assert len(folded) == 1 + min(turns, KEPT_TURNS) and folded[0] == S
    text = "\n".join(m.content for m in folded)
    places = [text.index(f"<{i}>") for i in range(turns)]
    assert places == sorted(places)
    if turns > KEPT_TURNS:
        assert folded[1].role == "user"  # the block is context, whoever spoke last in it
        assert folded[2:] == swap(stored[-KEPT_TURNS + 1 :])


def test_exact_name_then_longest_prefix_then_nothing():
    table = RoleTable({"reddit_*": "swap", "reddit_ama_*": "keep", "reddit_ama_1": "keep_with_system"})
    assert table.transform("reddit_x") is swap
    assert table.transform("reddit_ama_2") is keep
    assert table.transform("reddit_ama_1") is keep_with_system
    assert table.transform("unheard_of") is None


def test_declared_sources_of_the_published_corpus():
    table = RoleTable({})
    for name, transform in {
        "wildchat": swap,
        "wildchat_v1": swap,
        "convokit_winning_args": swap,
        "psych101": fold_and_swap,
        "tom_sotopia": keep_with_system,
        "sotopia": keep,
    }.items():
        assert table.transform(name) is transform, name


def test_a_config_overrides_the_built_in_table_and_may_declare_a_default():
    table = RoleTable({"wildchat*": "keep", "*": "swap"})
    assert table.transform("wildchat") is keep
    assert table.transform("anything") is swap


def test_an_unknown_transform_is_named():
    with pytest.raises(ValueError, match=r"data.roles: 'x' -> 'flip' is not one of keep, .*swap"):
        RoleTable({"x": "flip"})
