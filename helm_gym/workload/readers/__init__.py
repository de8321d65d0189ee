"""Readers of recorded data: a file's text in blocks, the table of formats, one line with care, a block at once."""
