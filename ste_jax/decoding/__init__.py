"""Batched sampled decoding: many samples of the same long prompts."""
