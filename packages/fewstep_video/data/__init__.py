"""Clips as training data: procedural worlds and folders of videos, in Lightning data modules with loaders that carry state."""
