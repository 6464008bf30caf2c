"""Mutants of a module, to show that its tests can fail."""

import importlib.util
import inspect
import itertools
import sys
import tempfile
from pathlib import Path
from types import ModuleType

_numbers = itertools.count()
_folder = tempfile.TemporaryDirectory(prefix="osim-mutants-")


def mutated(module: ModuleType, old: str, new: str) -> ModuleType:
    """A fresh module made from `module`'s source with `old` replaced by `new`; the original is untouched.

    `old` has to occur exactly once (ValueError). Works for @triton.jit kernels: the source is a real file. Relative
    imports and other modules that import `module` keep the original.
    """
    source = inspect.getsource(module)
    if source.count(old) != 1:
        raise ValueError(f"{old!r} occurs {source.count(old)} times in {module.__name__}, not once")
    name = f"{module.__name__}_mutant_{next(_numbers)}"
    path = Path(_folder.name) / f"{name}.py"
    path.write_text(source.replace(old, new))
    specification = importlib.util.spec_from_file_location(name, path)
    mutant = importlib.util.module_from_spec(specification)
    sys.modules[name] = mutant  # dataclasses and triton look a function's module up by name
    try:
        specification.loader.exec_module(mutant)
    except BaseException:
        del sys.modules[name]
        raise
    return mutant
