"""Procedural clips whose ground truth is known: training and metrics without a file."""

from fewstep_video.worlds.bouncing import Bouncing
from fewstep_video.worlds.moving_disc import MovingDisc
from fewstep_video.worlds.moving_shapes import MovingShapes
from fewstep_video.worlds.world import Scene, World

__all__ = ["Bouncing", "MovingDisc", "MovingShapes", "Scene", "World"]
