"""Measures a grid, and beside it, in the same rounds, what others offer. Start it with `make bench`."""
