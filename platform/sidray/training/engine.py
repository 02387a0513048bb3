"""The DeepSpeed engine of a stage: ZeRO 0-3, fp32 or bf16, clipping, AdamW, warm-up and linear decay."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from sidray.models.trained import TrainedModel, trained_state
from sidray.training.settings import StageSettings, TrainingSettings


def linear_schedule(steps: int, warmup: float) -> Any:
    """Multiplier of the learning rate at a step: up over the first `warmup` share, then linearly to zero."""
    rise = max(1, round(steps * warmup))

    def factor(step: int) -> float:
        return min((step + 1) / rise, max(0.0, (steps - step) / max(1, steps - rise)))

    return factor


def parameter_groups(module: nn.Module, stage: StageSettings, token_lr: float) -> list[dict[str, Any]]:
    """Matrices decay; biases, norms and SID tokens do not. SID tokens learn at `token_lr` times the stage's rate."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    tokens: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (tokens if ".sids." in name else matrices if parameter.ndim > 1 else others).append(parameter)
    groups = [
        {"params": matrices, "lr": stage.lr, "weight_decay": stage.weight_decay},
        {"params": others, "lr": stage.lr, "weight_decay": 0.0},
        {"params": tokens, "lr": stage.lr * token_lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def deepspeed_config(training: TrainingSettings, micro_batch: int) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": 1,  # contrastive batches are never accumulated: it would shrink the negatives
        "gradient_clipping": training.clip,
        "zero_optimization": {"stage": training.zero_stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": training.precision == "bf16"},
        "steps_per_print": 10**9,
    }


def make_engine(
    module: nn.Module,
    stage: StageSettings,
    training: TrainingSettings,
    steps: int,
    batch_size: int,
    token_lr: float,
) -> Any:
    """Inside a worker of a process group: the engine that owns module, optimiser and schedule."""
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiles for 25 s and is never used under Ray
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    deepspeed.init_distributed(dist_backend=backend, verbose=False)
    optimiser = torch.optim.AdamW(parameter_groups(module, stage, token_lr))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, linear_schedule(steps, stage.warmup))
    micro_batch = batch_size // torch.distributed.get_world_size()
    config = deepspeed_config(training, micro_batch)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimiser, lr_scheduler=scheduler, config=config)
    return engine


def full_state(model: TrainedModel) -> dict[str, Tensor]:
    """The stage's weights whole and in fp32, from any ZeRO stage. Every rank must call it."""
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    masters: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "_hp_mapping") or hasattr(parameter, "ds_id"):
            value = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
            if value is not None:
                masters[name] = value.detach().cpu().contiguous()
    with GatheredParameters(list(model.parameters())):
        state = trained_state(model)
    return {name: masters.get(name, value.float()) for name, value in state.items()}
