"""Sampled replies: from token lists to packed rows that training reads."""
