"""How much memory a build may take, as a formula; tests/corpus/test_stages_memory.py holds it to that."""

PROCESS = 1000 << 20  # Python with torch, pyarrow and the language model (600); a row of 16 MiB in the filters
CLUSTER = 512 << 20  # a chunk of 64 MiB in the deduplication, with its sketches; or the tables of the baselines
RECORD = 200  # bytes a record: clustering columns and their table
SIDE = 180  # bytes a side: columns of the split, and what sorting them takes


def memory_bound(records: int, sides: int, processes: int) -> int:
    """Bytes that all processes of a build take at most, for a corpus of that many records and sides.

    It does not depend on the length of the texts. One process does the work itself; of more, one more hands it out.
    """
    return PROCESS * (processes + (processes > 1)) + CLUSTER + max(RECORD * records, SIDE * sides)
