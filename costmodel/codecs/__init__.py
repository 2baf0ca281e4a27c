"""Numbers to tokens and back: each codec is a class with its grammar, and each value it can write has one string.

A number is a string of exactly `num_tokens` tokens of a small vocabulary of its own. A table says which token may
follow (`mask`, `next_state`), so that a batch is constrained on the device without a Python call per sample.
"""
