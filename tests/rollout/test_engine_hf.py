"""The transformers engine keeps the contract of all engines; tied and untied embeddings."""

import pytest

from osim_core.rollout.engines.hf_engine import HfEngine
from tests.rollout import engine_contract as contract
from tests.rollout.push_cases import tiny


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def served(request, tmp_path_factory):
    """(engine, the model it serves)."""
    folder = tmp_path_factory.mktemp("model")
    truth = contract.reference(tiny(request.param), folder)
    return HfEngine(folder, context=contract.CONTEXT, batch=7), truth


def test_completions_are_sampled_as_asked(served):
    contract.completions_are_sampled_as_asked(*served)


def test_frequencies_are_the_models(served):
    contract.frequencies_are_the_models(*served)


def test_seeds_alone_decide(served):
    contract.seeds_alone_decide(served[0])


def test_a_stop_token_is_the_last_one(served):
    contract.a_stop_token_is_the_last_one(*served)


def test_scores_are_log_probs_of_every_token_but_the_first(served):
    contract.scores_are_log_probs_of_every_token_but_the_first(*served)


def test_what_does_not_fit_is_missing_and_alone(served):
    contract.what_does_not_fit_is_missing_and_alone(served[0])


def test_pushes_replace_the_weights_and_bad_ones_nothing(served):
    contract.pushes_replace_the_weights_and_bad_ones_nothing(*served)
