"""The DeepSpeed engine of a stage: ZeRO 0-3, fp32 or bf16, clipping, AdamW, warm-up and linear decay."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sidray.models.trained import TrainedModel, trained_state
from sidray.training.module import StageModule
from sidray.training.settings import StageSettings, TrainingSettings


def linear_schedule(steps: int, warmup: float) -> Any:
    """Multiplier of the learning rate at a step: up over the first `warmup` share, then linearly to zero."""
    rise = max(1, round(steps * warmup))

    def factor(step: int) -> float:
        return min((step + 1) / rise, max(0.0, (steps - step) / max(1, steps - rise)))

    return factor


def parameter_groups(module: StageModule, stage: StageSettings, token_lr: float) -> list[dict[str, Any]]:
    """Matrices decay; biases, norms and SID tokens do not. A part learns at its `rates` times the stage's rate, SID
    tokens (and <IMG_EMB>) at `token_lr` times that of `sids`."""
    rates = _rates(module.model, stage)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            token = ".sids." in name
            rate = token_lr * stage.rates.get("sids", 1.0) if token else rates.get(parameter, 1.0)
            decay = stage.weight_decay if parameter.ndim > 1 and not token else 0.0
            groups.setdefault((stage.lr * rate, decay), []).append(parameter)
    return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]


def _rates(model: TrainedModel, stage: StageSettings) -> Mapping[nn.Parameter, float]:
    """The multiple of every parameter whose part has one."""
    return {
        parameter: stage.rates[part]
        for part, modules in model.groups().items()
        if part in stage.rates
        for module in modules
        for parameter in module.parameters()
    }


def deepspeed_config(training: TrainingSettings, micro_batch: int, universal: bool) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": 1,  # contrastive batches are never accumulated: it would shrink the negatives
        "gradient_clipping": training.clip,
        "zero_optimization": {"stage": training.zero_stage, **_offloads(training)},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": training.precision == "bf16"},
        "checkpoint": {"load_universal": universal},
        "steps_per_print": 10**9,
    }


def _offloads(training: TrainingSettings) -> dict[str, Any]:
    host = {"device": "cpu", "pin_memory": torch.cuda.is_available()}  # pinned: copied while the GPU computes
    parts = {"none": (), "optimizer": ("optimizer",), "parameters": ("optimizer", "param")}[training.offload]
    return {f"offload_{part}": host for part in parts}


def make_engine(
    module: StageModule,
    stage: StageSettings,
    training: TrainingSettings,
    steps: int,
    batch_size: int,
    token_lr: float,
    universal: bool,
) -> Any:
    """Inside a worker of a process group: the engine that owns module, optimiser and schedule. `universal`: it will
    load a checkpoint in DeepSpeed's universal format."""
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiles for 25 s and is never used under Ray
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    deepspeed.init_distributed(dist_backend=backend, verbose=False)
    # fused: one pass over the weights, which on CPUs takes most of a step
    optimiser = torch.optim.AdamW(parameter_groups(module, stage, token_lr), fused=training.offload != "none")
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, linear_schedule(steps, stage.warmup))
    micro_batch = batch_size // torch.distributed.get_world_size()
    config = deepspeed_config(training, micro_batch, universal)
    if training.offload == "parameters":
        _leave_on_host(module, training, config)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimiser, lr_scheduler=scheduler, config=config)
    return engine


def _leave_on_host(module: StageModule, training: TrainingSettings, config: dict[str, Any]) -> None:
    """Cuts the parameters where they are. DeepSpeed would first move the whole model to the GPU."""
    from deepspeed.runtime.zero import Init

    dtype = torch.bfloat16 if training.precision == "bf16" else torch.float32
    pinned = torch.cuda.is_available()
    Init(module=module, config_dict_or_path=config, dtype=dtype, remote_device="cpu", pin_memory=pinned)


def full_state(model: TrainedModel, optimizer: Any) -> dict[str, Tensor]:
    """The stage's weights whole and in fp32, from any ZeRO stage (what it does not train: as bf16 rounds it, where that
    is the precision). `optimizer`: the engine's. Every rank must call it."""
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    masters: dict[str, Tensor] = {}
    whole = _whole_masters(optimizer)
    for name, parameter in model.named_parameters():
        if parameter in whole:
            masters[name] = whole[parameter].detach().cpu().contiguous()
        elif hasattr(parameter, "_hp_mapping") or hasattr(parameter, "ds_id"):
            value = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
            if value is not None:
                masters[name] = value.detach().cpu().contiguous()
    with GatheredParameters(list(model.parameters())):
        state = trained_state(model)
    return {name: masters.get(name, value.float()) for name, value in state.items()}


def _whole_masters(optimizer: Any) -> dict[nn.Parameter, Tensor]:
    """bf16 parameter -> its fp32 master, where DeepSpeed keeps them whole: without ZeRO."""
    from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer

    if not isinstance(optimizer, FP16_UnfusedOptimizer):  # those of ZeRO have groups of these names, cut into parts
        return {}
    pairs = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
    return {low: high for lows, highs in pairs for low, high in zip(lows, highs, strict=True)}
