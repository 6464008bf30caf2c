"""Judges: language models that score replies against a rubric, by the probabilities of its answer words.

    rubric.py rubrics/   rubrics as data, items, verdicts, the Judge protocol
    prompt.py labels.py  what a judge reads, and the tokens of the words it may answer
    tree.py inprocess.py packed prompt trees on a frozen model in the trainer's process
    vllm_judge.py        the same prompts and labels in a vLLM process
    http_judge.py        any OpenAI-compatible server, over transport.py and cache.py
    reading.py           label probabilities to verdicts, shared by all
    calibrate.py         temperature and bias per dimension, fitted on labelled items
    panel.py open.py     counting and limiting what is missing; the judge that a config names

Nothing is decoded: a judgement is the prefill of a prompt that ends where the answer word would begin. Only servers
that tell no log-probs are asked to write, and then a word a dimension.
"""
