"""Video models of latents: pixels to latents and back by diffusers' autoencoders."""

from fewstep_video.codecs.autoencoders import CogVideoXCodec, FrameCodec, WanCodec
from fewstep_video.codecs.codec import Codec

__all__ = ["Codec", "CogVideoXCodec", "FrameCodec", "WanCodec"]
