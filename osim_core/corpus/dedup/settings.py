"""What a deduplication of files depends on; run.py and turns.py take it, __main__.py fills it from a command line."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from osim_core.corpus.dedup import THRESHOLD, Device, check_settings

LONGEST_ROW = 16 << 20

Report = Callable[[str, int, int], None]  # stage, done, total


def silent(stage: str, done: int, total: int) -> None:
    """A Report that says nothing."""


@dataclass(frozen=True)
class Settings:
    """How rows are read, compared and chosen.

    text_field      top-level string of a row to compare
    threshold       Jaccard index of a duplicate, in [0.7, 1]
    bad_rows        stop at the first bad row, or list them beside the output and go on
    longest_row     bytes of a line, up to 1 GiB
    mask_roles      compare without role tags at line starts (`User:`, `Speaker 2:`, `<|im_start|>user`)
    mask_prompts    if not 0, compare without a first line that at least so many rows share; what is shared depends on
                    all rows, so not with a store
    priority_field  top-level string of a row, such as its source, that decides which row of a cluster survives
    priorities      {value of that field: number}; the smallest number survives, then the first row. "*" stands for
                    the values that are not listed, which are errors without it
    store           folder to keep signatures in, and to compare with
    device          where texts are sketched; the result is the same
    """

    text_field: str = "text"
    threshold: float = THRESHOLD
    threads: int = 1
    bad_rows: Literal["stop", "quarantine"] = "stop"
    longest_row: int = LONGEST_ROW
    mask_roles: bool = False
    mask_prompts: int = 0
    priority_field: str | None = None
    priorities: Mapping[str, int] | None = None
    store: Path | None = None
    device: Device = "cpu"

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields to find in each row."""
        return (self.text_field,) if self.priority_field is None else (self.text_field, self.priority_field)

    def check(self) -> None:
        """Raises ValueError for settings that cannot work."""
        check_settings(self.threshold, self.threads)
        if self.device == "cuda":
            from osim_core.corpus.dedup.cuda import require_gpu  # imports torch

            require_gpu()
        if not 0 < self.longest_row <= 1 << 30:
            raise ValueError(f"dedup: longest_row {self.longest_row} is not in [1, 2^30]")
        if self.mask_prompts and self.store is not None:
            raise ValueError("dedup: mask_prompts does not go with a store: what is shared depends on all rows")
        if (self.priority_field is None) != (self.priorities is None):
            raise ValueError("dedup: priority_field and priorities go together; one of them is missing")
        if self.priority_field == self.text_field:
            raise ValueError(f"dedup: {self.text_field!r} cannot be both the text and the priority field")
        for name, number in (self.priorities or {}).items():
            if not isinstance(number, int) or not -(1 << 31) <= number < 1 << 31:
                raise ValueError(f"dedup: the priority of {name!r} must be a whole number of 32 bits, got {number!r}")

    def priority(self, name: str) -> int | None:
        """Number of a value of the priority field; None if it is not listed and there is no "*"."""
        return self.priorities.get(name, self.priorities.get("*"))
