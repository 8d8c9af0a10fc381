"""Robustness as a test: the sequential gate, baselines, and the evidence of a failure."""
