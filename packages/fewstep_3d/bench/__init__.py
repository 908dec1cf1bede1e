"""Measurements behind the figures of the documentation: `python -m fewstep_3d.bench.NAME`."""
