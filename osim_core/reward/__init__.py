"""Rewards beside judges, what they are composed of, and the detectors that keep a policy from fooling them."""
