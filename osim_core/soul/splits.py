"""Train, validation and test by scenario: samples that share a story or a person never lie on two sides."""

from collections.abc import Mapping

from osim_core.corpus.split import rank
from osim_core.soul.episode import Split

SEED = 1234  # part of every task's version: another seed gives other splits
SHARES: Mapping[Split, float] = {"train": 0.6, "validation": 0.2, "test": 0.2}


def split_scenarios(strata: Mapping[str, str]) -> dict[str, Split]:
    """scenario -> split, with SHARES of every stratum. `strata` maps each scenario to what should be balanced.

    The order of draws depends on names alone, so adding a stratum moves nothing in the others.
    """
    members: dict[str, list[str]] = {}
    for scenario in sorted(strata, key=lambda scenario: rank(scenario, SEED)):
        members.setdefault(strata[scenario], []).append(scenario)
    splits: dict[str, Split] = {}
    for scenarios in members.values():
        begin, share = 0, 0.0
        for split, part in SHARES.items():
            share += part
            end = round(share * len(scenarios))
            splits.update(dict.fromkeys(scenarios[begin:end], split))
            begin = end
    return splits
