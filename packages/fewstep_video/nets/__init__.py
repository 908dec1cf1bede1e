"""diffusers' video networks as networks of `fewstep.Denoiser`: one layout, one way of conditions."""

from fewstep_video.nets.cogvideox import CogVideoX
from fewstep_video.nets.conditions import Classes, Texts
from fewstep_video.nets.ltx import LTX
from fewstep_video.nets.unet3d import UNet3D
from fewstep_video.nets.unet_motion import UNetMotion
from fewstep_video.nets.video_network import VideoNetwork
from fewstep_video.nets.wan import Wan

__all__ = ["LTX", "Classes", "CogVideoX", "Texts", "UNet3D", "UNetMotion", "VideoNetwork", "Wan"]
