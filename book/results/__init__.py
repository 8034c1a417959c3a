"""Stored results of long runs, one JSON file each, installed as `fedlib.results`."""
