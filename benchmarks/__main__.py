"""Dispatcher of the benchmarks: `python -m benchmarks NAME [ARGS]` runs `main(ARGS)` of benchmarks/NAME.py or NAME/.

Without a name, or with one that does not exist, lists what there is and exits 2. Results go to
benchmarks/results/NAME.jsonl through benchmarks/ledger.py.
"""

import ast
import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def benchmarks() -> dict[str, str]:
    """name -> first line of its docstring, read without importing it; a benchmark is a module with a `main`."""
    found = {}
    for path in sorted([*FOLDER.glob("*.py"), *FOLDER.glob("*/__init__.py")]):
        tree = ast.parse(path.read_text())
        name = path.parent.name if path.stem == "__init__" else path.stem
        if name != "__main__" and any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            docstring = ast.get_docstring(tree)
            found[name] = docstring.splitlines()[0] if docstring else ""
    return found


def main(argv: list[str]) -> int:
    """Run one benchmark; returns the exit status."""
    known = benchmarks()
    if not argv or argv[0] not in known:
        wrong = f"no benchmark {argv[0]!r}; " if argv else ""
        print(f"{wrong}usage: python -m benchmarks NAME [ARGS]", file=sys.stderr)
        for name, line in known.items():
            print(f"  {name:<10} {line}", file=sys.stderr)
        return 2
    name, *arguments = argv
    try:
        importlib.import_module(f"benchmarks.{name}").main(arguments)
    except ValueError as error:
        print(f"benchmarks {name}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
