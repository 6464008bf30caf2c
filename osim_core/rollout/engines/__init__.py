"""Rollout engines behind rollout/engine.py: vLLM in its own process, and transformers for parity."""
