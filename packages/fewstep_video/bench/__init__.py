"""Benches of video: `python -m fewstep_video.bench.NAME`."""
