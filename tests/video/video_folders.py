"""Tiny networks, autoencoders and folders of diffusers with random weights."""

import json

import torch

from fewstep_video.codecs import CogVideoXCodec, FrameCodec, WanCodec
from fewstep_video.nets import Classes, CogVideoX, UNet3D, Wan

HEADS = {"num_layers": 2, "num_attention_heads": 2}
WAN = {
    **HEADS,
    "attention_head_dim": 16,
    "ffn_dim": 48,
    "patch_size": [2, 2, 2],
    "in_channels": 3,
    "out_channels": 3,
    "text_dim": 12,
}
COG = {
    **HEADS,
    "attention_head_dim": 16,
    "patch_size": 2,
    "in_channels": 3,
    "out_channels": 3,
    "text_embed_dim": 12,
    "time_embed_dim": 16,
}
COG |= {
    "sample_height": 8,
    "sample_width": 8,
    "sample_frames": 13,
    "max_text_seq_length": 2,
    "use_learned_positional_embeddings": True,
}
COG |= {"use_rotary_positional_embeddings": True}
LTXC = {
    **HEADS,
    "attention_head_dim": 16,
    "in_channels": 12,
    "out_channels": 12,
    "cross_attention_dim": 32,
    "caption_channels": 12,
}
BLOCKS = {
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "in_channels": 3,
    "out_channels": 3,
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
}
MOTION = {**BLOCKS, "num_attention_heads": 2, "motion_num_attention_heads": 2}
MOTION |= {
    "down_block_types": ["CrossAttnDownBlockMotion", "DownBlockMotion"],
    "up_block_types": ["UpBlockMotion", "CrossAttnUpBlockMotion"],
}
UNET3D = {**BLOCKS, "attention_head_dim": 4, "down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"]}
UNET3D |= {"up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"]}
LTXC |= {"patch_size": 2, "patch_size_t": 1}
WAN_VAE = {
    "base_dim": 4,
    "z_dim": 4,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True],
    "latents_mean": [0.1, -0.2, 0.0, 0.3],
    "latents_std": [2.0, 1.5, 1.0, 0.5],
}
COG_VAE = {
    "block_out_channels": [8, 8, 8, 8],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "temporal_compression_ratio": 4,
    "scaling_factor": 0.7,
}
COG_VAE |= {"down_block_types": ["CogVideoXDownBlock3D"] * 4, "up_block_types": ["CogVideoXUpBlock3D"] * 4}
KL = {"block_out_channels": [8, 8], "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4}
KL |= {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
DDIM_CONFIG = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
CASES = {
    "wan": (
        "transformer",
        Wan,
        {**WAN, "in_channels": 4, "out_channels": 4, "patch_size": [1, 2, 2]},
        WanCodec,
        WAN_VAE,
        FLOW,
    ),
    "cogvideox": (
        "transformer",
        CogVideoX,
        {
            **COG,
            "in_channels": 4,
            "out_channels": 4,
            "sample_height": 2,
            "sample_width": 2,
            "sample_frames": 9,
            "use_learned_positional_embeddings": False,
        },
        CogVideoXCodec,
        COG_VAE,
        {
            "_class_name": "CogVideoXDDIMScheduler",
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "snr_shift_scale": 3.0,
        },
    ),
    "modelscope": ("unet", UNet3D, {**UNET3D, "in_channels": 4, "out_channels": 4}, FrameCodec, KL, DDIM_CONFIG),
}


def built(kind, config, condition=None, **kwargs):
    torch.manual_seed(0)
    return kind(config, condition or Classes(3, dim=12), **kwargs).eval()


def diffusers_folder(place, name):
    part, kind, config, codec, vae, scheduler = CASES[name]
    torch.manual_seed(0)
    built(kind, config).model.save_pretrained(place / part)
    codec(vae).model.save_pretrained(place / "vae")
    (place / "scheduler").mkdir()
    (place / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return place
