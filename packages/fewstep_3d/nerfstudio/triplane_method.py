"""`ns-train fewstep-triplane --data DIR`: one object from pictures of it. Works without CUDA and without a network."""
# pyright: reportMissingImports=false

import torch
from nerfstudio.configs.base_config import MachineConfig
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.plugins.types import MethodSpecification

from fewstep_3d.fitting import DECODER_RATE, Fit
from fewstep_3d.nerfstudio.data_parser import ViewsParserConfig
from fewstep_3d.nerfstudio.scene_model import SceneModelConfig

FIT = Fit()

TRIPLANE = MethodSpecification(
    config=TrainerConfig(
        method_name="fewstep-triplane",
        max_num_iterations=FIT.iterations,
        steps_per_save=100,
        steps_per_eval_batch=0,
        steps_per_eval_image=100,
        steps_per_eval_all_images=0,
        machine=MachineConfig(device_type="cuda" if torch.cuda.is_available() else "cpu"),
        vis="tensorboard",
        pipeline=VanillaPipelineConfig(
            datamanager=VanillaDataManagerConfig(dataparser=ViewsParserConfig(), train_num_rays_per_batch=FIT.rays),
            model=SceneModelConfig(),
        ),
        optimizers={
            "planes": {"optimizer": AdamOptimizerConfig(lr=FIT.lr), "scheduler": None},
            "decoder": {"optimizer": AdamOptimizerConfig(lr=FIT.lr * DECODER_RATE), "scheduler": None},
        },
    ),
    description="fewstep: a triplane signed-distance field of one object, through a tabulated grid; CPU or GPU.",
)
