"""Judges: language models that score replies against a rubric, by the probabilities of its answer words."""
