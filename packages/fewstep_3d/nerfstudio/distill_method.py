"""`ns-train fewstep-distill --data TEACHER`: a few-step generator of triplanes from a multi-view teacher, without any picture."""
# pyright: reportMissingImports=false

import torch
from nerfstudio.configs.base_config import MachineConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.plugins.types import MethodSpecification

from fewstep_3d.nerfstudio.camera_data import CameraDataManagerConfig
from fewstep_3d.nerfstudio.distill_model import DistillModelConfig

DISTILL = MethodSpecification(
    config=TrainerConfig(
        method_name="fewstep-distill",
        max_num_iterations=2000,
        steps_per_save=250,
        steps_per_eval_batch=0,
        steps_per_eval_image=0,
        steps_per_eval_all_images=0,
        machine=MachineConfig(device_type="cuda" if torch.cuda.is_available() else "cpu"),
        vis="tensorboard",
        pipeline=VanillaPipelineConfig(datamanager=CameraDataManagerConfig(), model=DistillModelConfig()),
        # Those of the recipes; `fake` is that of methods with a critic.
        optimizers={
            "student": {"optimizer": AdamOptimizerConfig(lr=2e-3, max_norm=1.0), "scheduler": None},
            "fake": {"optimizer": AdamOptimizerConfig(lr=1e-3, max_norm=1.0), "scheduler": None},
        },
    ),
    description="fewstep: a few-step generator of meshes, distilled from a multi-view teacher; --data is its artifact.",
)
