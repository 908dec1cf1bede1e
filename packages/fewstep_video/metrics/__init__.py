"""Figures of videos that need no downloaded weights. Clips are (B, C, F, H, W) in [-1, 1] everywhere.

Laws of two sets: `rfvd`, `mfvd`, `afid`, `kvd`. Single clips, (B,): `acceleration`, `flicker`, `flow_figures` (warp error, dynamic degree,
smoothness), `consistency`, `seam`, `drift`, and against the truth of a world `truth_figures`. A frozen video wins every figure of smoothness: look at
the dynamic degree beside them.
"""

from fewstep_video.metrics.consistency import consistency
from fewstep_video.metrics.differences import acceleration, flicker
from fewstep_video.metrics.drift import drift
from fewstep_video.metrics.flow import FlowFigures, flow_figures
from fewstep_video.metrics.laws import afid, diversity, kvd, law_figures, mfvd, rfvd
from fewstep_video.metrics.random_features import RandomFeatures
from fewstep_video.metrics.seam import seam
from fewstep_video.metrics.truth import truth_figures

__all__ = [
    "FlowFigures",
    "RandomFeatures",
    "acceleration",
    "afid",
    "consistency",
    "diversity",
    "drift",
    "flicker",
    "flow_figures",
    "kvd",
    "law_figures",
    "mfvd",
    "rfvd",
    "seam",
    "truth_figures",
]
