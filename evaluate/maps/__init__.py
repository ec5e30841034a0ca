"""Arithmetic on maps: ranks, frames, boxes, overlays."""
