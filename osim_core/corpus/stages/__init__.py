"""What recipes/corpus.py is made of: one file a stage, each with the function that does one part of it.

    check.py       what is refused at once
    inputs.py      what is read, and what is known of each source
    read.py        files -> records, in chunks of bounded size
    context.py     records -> conversations with their social contexts
    filter.py      conversations -> those that no filter drops
    cluster.py     near-duplicates among all records
    clean.py       what becomes of each conversation: duplicate, benchmark item, or kept
    divide.py      train and validation
    vocabulary.py  the tokenizer
    tokenise.py    token documents, by content hash (token_store.py), in shards
    baselines.py   n-gram baselines of the shards
    publish.py     the corpus folder with its manifest and its audit table
    record.py      a record, and the files of records between the stages; tables.py: the audit table
    pipeline.py    the stages in a row, each keyed by the one before
    memory.py      the bound on memory

A chunk keeps its name from the first stage to the last, so its files can be followed by eye in the work folder.
Memory of a part does not depend on the corpus: a batch of records, or the hashes of one chunk. The three stages that
look at the whole corpus (cluster, divide, baselines) hold NumPy columns only.
"""

VERSION = 1  # part of every stage's identity: raise it when the same inputs give other bytes
BATCH = 256  # records in memory at a time,
BATCH_BYTES = 16 << 20  # or fewer, once they are that large
