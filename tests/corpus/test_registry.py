"""The registry: the published sources once each, on stated terms, readable, and refused where the licence says so."""

import pytest

from osim_core.corpus.registry import REFUSED, REGISTRY, find
from osim_core.corpus.roles import TRANSFORMS, RoleTable
from osim_core.corpus.sources import SOURCES
from osim_core.corpus.sources.load import FORMATS, load
from osim_core.corpus.sources.quarantine import Quarantine

FAMILIES = {  # of the authors' routing table, with how many sources each has there
    "human-AI chat": (8, ("wildchat", "lmsys", "oasst1", "oasst2", "prism", "alignx", "nectar", "hh_rlhf")),
    "human-human": (3, ("dailydialog", "cornell_movie", "empathetic")),
    "ConvoKit": (22, ("convokit_",)),
    "Humanual": (6, ("humanual_",)),
    "experiments": (2, ("psych101", "socsci210")),
    "instruction style": (1, ("human_llm",)),
    "theory of mind and social skill": (16, ("tom_", "soc_", "sotopia_pi")),
    "role play, judging, education": (5, ("coser", "rm_r1_sft", "education_dialogue", "mathdial", "studychat")),
}


def test_the_published_families_are_all_there_and_nothing_else():
    named = {family: [n for n in REGISTRY if n.startswith(prefixes)] for family, (_, prefixes) in FAMILIES.items()}
    assert {family: len(names) for family, names in named.items()} == {f: count for f, (count, _) in FAMILIES.items()}
    assert sum(map(len, named.values())) == len(REGISTRY) == 63
    assert not set(REGISTRY) & set(SOURCES)  # the packaged ones have their own table


@pytest.mark.parametrize("source", REGISTRY.values(), ids=list(REGISTRY))
def test_a_source_is_complete_and_agrees_with_the_role_table(source):
    assert source.format in FORMATS and source.epochs > 0
    assert RoleTable({}).transform(source.name) is TRANSFORMS[source.roles]
    assert all((source.title, source.simulated, source.licence, source.terms, source.homepage))
    assert "http" not in source.homepage
    if source.field:
        assert source.field in source.columns


def test_axes_of_index_tasks_are_those_of_the_index():
    stated = {name: source.axis for name, source in REGISTRY.items() if source.axis_from == "SOUL-Index"}
    assert stated["alignx"] == stated["socsci210"] == stated["humanual_book"] == "EVAL"
    assert stated["humanual_chat"] == stated["prism"] == "CONV"
    assert stated["humanual_email"] == stated["coser"] == "ROLE"
    assert stated["tom_hitom"] == "COG" and stated["sotopia_pi"] == "SS"


@pytest.mark.parametrize("name", ["tau_usi", "tau-usi", "cmu-lti/tau-usi", "TAU-USI", "tau_usi_human"])
def test_what_may_not_be_trained_on_is_refused_by_name(name, tmp_path):
    with pytest.raises(ValueError, match=r"source '.*' is refused: .*CC BY-NC 4\.0.*refused") as error:
        load(name, [tmp_path], Quarantine())
    assert repr(name) in str(error.value) and "\n" not in str(error.value)
    assert not set(REFUSED) & set(REGISTRY)


def test_an_unknown_name_is_one_clear_line():
    with pytest.raises(ValueError, match=r"no source 'wildcat'; registry\.py lists 63"):
        find("wildcat")
