"""Measure a checkpoint: explainers, alignment with human maps, statistics, reports."""
