"""The worker groups of the layout tests; each starts once, when a test first asks for it."""

import pytest

from tests.support.workers import Workers


@pytest.fixture(scope="session")
def workers():
    """workers(n) -> the session's group of n gloo ranks."""
    groups: dict[int, Workers] = {}

    def group(size: int) -> Workers:
        if size not in groups or not groups[size].alive:
            groups[size] = Workers(size)
        return groups[size]

    yield group
    for started in groups.values():
        started.close()
