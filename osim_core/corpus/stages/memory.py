"""How much memory a build may take, as a formula; tests/corpus/test_build_memory.py holds it to that."""

PROCESS = 900 << 20  # Python with torch, pyarrow and the language model; a batch of records of up to 16 MiB
CLUSTER = 512 << 20  # a chunk of 64 MiB in the deduplication, with its sketches
RECORD = 200  # bytes a record: clustering columns and their table
SIDE = 120  # bytes a side: columns of the split, and what sorting them takes


def memory_bound(records: int, sides: int, processes: int) -> int:
    """Bytes that all processes of a build take at most, for a corpus of that many records and sides.

    It does not depend on the length of the texts. 20 M records of two sides on 8 processes: 12 GB; on one: 6 GB.
    """
    return PROCESS * (processes + 1) + CLUSTER + max(RECORD * records, SIDE * sides)
