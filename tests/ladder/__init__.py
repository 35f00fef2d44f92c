"""The rungs of the parity ladder: one part of RMT each, ours and the PyTorch reference's on the same numbers.

A rung takes a `Case` and tells how far the two are apart. Cases are drawn by hypothesis: architecture, size, types and
the seed of weights and inputs. What a rung compares of ours is looked up in the module that uses it, so that a mistake
made there is met here.
"""
