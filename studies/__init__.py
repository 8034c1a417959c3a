"""Studies that are run from a checkout of the book: ``python -m studies NAME``.

A study computes a table that chapters show; it lies beside the library, not in it.
"""
