"""Peers that happen to be installed."""

from importlib.util import find_spec


def installed(package: str) -> bool:
    """Whether a package can be imported; it is not imported here, since some need a GPU for that."""
    return find_spec(package) is not None
