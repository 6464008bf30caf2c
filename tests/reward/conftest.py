"""One sentence encoder for all tests of this folder; it takes a second to load."""

import pytest

from osim_core.reward.detectors.standard import standard_panel
from osim_core.reward.similarity import SentenceEncoder


@pytest.fixture(scope="session")
def encoder() -> SentenceEncoder:
    return SentenceEncoder()


@pytest.fixture(scope="session")
def panel(encoder):
    return standard_panel(encoder)
