"""Reply trees as straight dialogues; used by the OASST and ConvoKit loaders.

A chain is one dialogue. A branching tree gives root-to-leaf paths, longest first (then the order in the file); a path
whose words are mostly in a path already taken is left out, so that a popular opening is not trained a hundred times.
"""

from collections.abc import Mapping, Sequence

NEW_SHARE = 0.5  # of a path's nodes that no earlier path has; a path with less is left out
MAX_PATHS = 64  # of one tree


def paths(parents: Mapping[str, str | None]) -> tuple[list[list[str]], int]:
    """Root-to-leaf paths of a forest given as node -> parent, in file order; also how many were left out.

    A node whose parent is missing is a root. Nodes on a cycle have no root and give no path.
    """
    children: dict[str, list[str]] = {}
    roots: list[str] = []
    for node, parent in parents.items():
        if parent is None or parent not in parents:
            roots.append(node)
        else:
            children.setdefault(parent, []).append(node)
    depth: dict[str, int] = {}
    leaves: list[str] = []
    for root in roots:
        depth[root] = 1
        stack = [root]
        while stack:
            node = stack.pop()
            below = children.get(node, ())
            if not below:
                leaves.append(node)
            for child in below:
                depth[child] = depth[node] + 1
                stack.append(child)
    order = {node: number for number, node in enumerate(parents)}
    leaves.sort(key=lambda leaf: (-depth[leaf], order[leaf]))
    taken: set[str] = set()
    kept: list[list[str]] = []
    for leaf in leaves:
        new, node = 0, leaf
        while node not in taken:  # taken nodes have all their ancestors taken
            new += 1
            parent = parents[node]
            if parent is None or parent not in parents:
                break
            node = parent
        if len(kept) < MAX_PATHS and new >= NEW_SHARE * depth[leaf]:
            path = _up(leaf, parents)
            taken.update(path)
            kept.append(path)
    return kept, len(leaves) - len(kept)


def is_chain(parents: Sequence[tuple[str, str | None]]) -> bool:
    """Whether (node, parent) pairs, in order, each reply to the one before, or to nothing known."""
    known = {node for node, _ in parents}
    previous: str | None = None
    for node, parent in parents:
        if parent is not None and parent in known and parent != previous:
            return False
        previous = node
    return True


def _up(leaf: str, parents: Mapping[str, str | None]) -> list[str]:
    path, node = [], leaf
    while node is not None and node in parents:
        path.append(node)
        node = parents[node]
    return path[::-1]
