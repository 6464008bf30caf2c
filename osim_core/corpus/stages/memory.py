"""How much memory a build may take, as a formula; tests/corpus/test_stages_memory.py holds it to that."""

PROCESS = 900 << 20  # Python with torch, pyarrow and the language model; a batch of records of up to 16 MiB
CLUSTER = 512 << 20  # a chunk of 64 MiB in the deduplication, with its sketches
RECORD = 200  # bytes a record: clustering columns and their table
SIDE = 180  # bytes a side: columns of the split, and what sorting them takes


def memory_bound(records: int, sides: int, processes: int) -> int:
    """Bytes that all processes of a build take at most, for a corpus of that many records and sides.

    It does not depend on the length of the texts. One process does the work itself; of more, one more hands it out.
    """
    return PROCESS * (processes + (processes > 1)) + CLUSTER + max(RECORD * records, SIDE * sides)
