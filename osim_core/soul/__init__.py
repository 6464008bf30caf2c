"""Tasks that put a model into a person's place: one protocol for RL and for SOUL-Index."""
