"""Cameras of this package as nerfstudio's: the same axes, the same pixels."""
# pyright: reportMissingImports=false

from nerfstudio.cameras.cameras import Cameras as NerfstudioCameras
from nerfstudio.cameras.cameras import CameraType

from fewstep_3d.cameras import Cameras


def to_nerfstudio(cameras: Cameras) -> NerfstudioCameras:
    """(V,) cameras."""
    (fx, fy), (cx, cy) = cameras.focal.T, cameras.centre.T
    height, width = cameras.size
    return NerfstudioCameras(
        cameras.c2w[:, :3].contiguous(),
        *(x[:, None].contiguous() for x in (fx, fy, cx, cy)),
        width=width,
        height=height,
        camera_type=CameraType.PERSPECTIVE,
    )
