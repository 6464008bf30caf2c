"""A file's texts as signature parts on disk: the first pass of run.py and turns.py. Legend: T texts of a chunk."""

from pathlib import Path

import numpy as np

from osim_core import _dedup
from osim_core.corpus.dedup import Sketches
from osim_core.corpus.dedup.reading import Reader, Scan, Scanner
from osim_core.corpus.dedup.settings import Report, Settings
from osim_core.corpus.dedup.store import Part, read_part, write_part

NO_PROMPTS = np.zeros(0, np.uint64)


def sketch_file(
    source: Path, folder: Path, number: int, scan: Scanner, prompts: np.ndarray, settings: Settings, report: Report
) -> list[Part]:
    """Read and sketch a file into parts `number`-*.signatures of `folder`.

    The last part has no texts; it says how many rows there were, and which of them are bad. `report` is called with
    the bytes read. Raises ValueError naming file and row for bad input.
    """
    reader = Reader(source, scan, settings)
    size = source.stat().st_size
    parts: list[Part] = []

    def write(chunk: np.ndarray, offset: int, first_row: int, found: Scan, last: dict) -> None:
        sketches, text_bytes = _sketch(chunk, found, prompts, settings)
        columns = {"lines": first_row + found.rows, "begins": found.begins + offset, "lengths": found.lengths}
        columns |= found.extra | {name: getattr(sketches, name) for name in Sketches.__slots__}
        about = {"path": str(source.resolve()), "part": len(parts), "text_bytes": text_bytes, "names": found.names}
        about |= {"settings": about_texts(settings), "last": bool(last)}
        parts.append(write_part(folder / f"{number:05}-{len(parts):05}.signatures", about | last, columns))

    for offset, first_row, chunk, found in reader:
        report("sketch", offset, size)
        write(chunk, offset, first_row, found, {})
    report("sketch", size, size)
    bad = [{"row": b.row, "line": b.line, "reason": b.reason} for b in reader.bad]
    nothing = np.zeros(0, np.uint8)
    write(nothing, size, reader.rows, scan(nothing), {"rows": reader.rows, "size": size, "bad": bad})
    return parts


def about_texts(settings: Settings) -> dict:
    """What a part depends on besides the file."""
    return {
        "fields": list(settings.fields),
        "threshold": settings.threshold,
        "mask_roles": settings.mask_roles,
    }


def known_files(folder: Path, settings: Settings) -> dict[str, list[Part]]:
    """Source path -> its parts, in the order in which the sources came. An unfinished source is forgotten."""
    files: dict[str, list[Part]] = {}
    for path in sorted(folder.glob("*.signatures")):
        part = read_part(path)
        if part.header["source"]["settings"] != about_texts(settings):
            raise ValueError(f"{path}: made with {part.header['source']['settings']}, not {about_texts(settings)}")
        files.setdefault(part.header["source"]["path"], []).append(part)
    for name, parts in list(files.items()):
        about = parts[-1].header["source"]
        if not about["last"]:
            for part in parts:
                part.path.unlink()
            del files[name]
        elif not Path(name).is_file() or Path(name).stat().st_size != about["size"]:
            raise ValueError(f"{name}: gone or changed since the store {folder} was written; restore it or start anew")
    return files


def _sketch(chunk: np.ndarray, found: Scan, prompts: np.ndarray, settings: Settings) -> tuple[Sketches, int]:
    """Sketches of the chunk's texts and the bytes of those."""
    signatures = settings.store is not None
    texts = (chunk, found.begins, found.lengths, settings.mask_roles, prompts)
    if settings.device == "cuda":
        from osim_core.corpus.dedup.cuda import CudaSketcher  # imports torch

        data, offsets = _dedup.decode_lines(*texts, settings.threads)
        sketcher = CudaSketcher(settings.threshold, signatures=signatures, threads=settings.threads)
        return sketcher(data, offsets), data.size
    columns, text_bytes = _dedup.sketch_lines(*texts, settings.threshold, settings.threads, signatures=signatures)
    return Sketches(*columns), text_bytes
