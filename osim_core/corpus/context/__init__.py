"""Social contexts: who the simulated person is, to whom they speak, where, and what they want.

Few corpora state them, so OdysSim (arXiv 2606.14199) writes them back from the conversation itself. Its prompts and
filters are not published; these are ours:

    schema.py    the four fields, their bounds, and the system message made of them
    leakage.py   how much of what is said later a context gives away, and when that is too much
    writers.py   the interface of a writer, and the default: rules over what the record states
    prompt.py    what a language model is asked
    endpoint.py  any server with the OpenAI chat completions interface
    offline.py   vLLM in this process
    store.py     what has been written, by content hash, so that a killed run goes on
    generate.py  dialogues in, conversations with contexts out, and the report
"""
