"""Comparisons of many checkpoints in one command."""
