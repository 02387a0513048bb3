"""An engine goes back to a checkpoint, also to one that another number of workers made.

    with checkpoints.newest() as found:
        engine = make_engine(..., universal=found is not None and is_resharded(found))
        if found is not None: resume(engine, found)

ZeRO shards belong to the number of ranks that wrote them. DeepSpeed's universal format holds every parameter and its
moments whole.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sidray.tasks.losses import world_size
from sidray.training.checkpoint import Restored
from sidray.training.group import gathered, leads_node

TAG = "engine"  # the folder of the engine's files in a checkpoint


def is_resharded(found: Restored) -> bool:
    """Whether its shards are those of another number of ranks. ZeRO 0 in fp32 has none."""
    sharded = any(path.endswith("optim_states.pt") for path in found.manifest.files)
    return sharded and found.manifest.made.world != world_size()


def resume(engine: Any, found: Restored) -> None:
    """Weights, optimiser and schedule as they were. All ranks call it."""
    if not is_resharded(found):
        engine.load_checkpoint(str(found.folder), tag=TAG)
        return
    if leads_node():
        _to_universal(found.folder / TAG, found.scratch / TAG)
    gathered(None)
    own = [{k: v for k, v in group.items() if k != "params"} for group in engine.optimizer.param_groups]
    engine.optimizer.load_hp_checkpoint_state_from_checkpoint_dir = partial(_load_groups, engine.optimizer)
    engine.load_checkpoint(str(found.scratch), tag=TAG)
    _mend_optimiser(engine, own)
    _load_buffers(engine.module, found.folder / TAG)


def _to_universal(source: Path, target: Path) -> None:
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    done = subprocess.run(
        [*command, "--input_folder", str(source), "--output_folder", str(target)],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"the checkpoint of another number of workers was not converted: {done.stderr[-2000:]}")


def _load_groups(optimiser: Any, groups: str, folder: str) -> None:
    """DeepSpeed 0.19's method of the same name for ZeRO 1 and 2, which fails on a rank that has no part of some group:
    of one with fewer elements than there are ranks."""
    from deepspeed.utils.tensor_fragment import map_to_flat_opt_states

    saved = Path(folder) / "zero"
    optimiser._load_global_state(torch.load(saved / "optimizer_state.pt", weights_only=False))
    states = optimiser.optimizer.state
    for group, parameters in zip(optimiser.optimizer.param_groups, getattr(optimiser, groups), strict=True):
        flat = group["params"][0]
        keys: set[str] = set()
        for parameter in parameters:
            if parameter._hp_mapping is not None:
                name = str(saved / optimiser.param_names[parameter])
                states[flat]["step"] = parameter.load_hp_checkpoint_state(name, 0, 1)
                keys |= set(parameter._hp_mapping.get_optim_state_keys())
        map_to_flat_opt_states(flat, parameters, states, keys)


def _mend_optimiser(engine: Any, own: list[dict[str, Any]]) -> None:
    """`own`: the settings of its groups as they were made. DeepSpeed 0.19 gives every group the settings of the first
    one (its decay, its rate), and all of them one tensor that counts steps: each would count for all."""
    rates = engine.lr_scheduler.get_last_lr()
    for group, settings, lr in zip(engine.optimizer.param_groups, own, rates, strict=True):
        group.update(settings, lr=lr)
    for state in engine.optimizer.optimizer.state.values():
        if state.get("step") is not None:
            state["step"] = state["step"].clone()


def _load_buffers(module: torch.nn.Module, folder: Path) -> None:
    """The universal format has none; every rank's are the same."""
    first = min(folder.glob("*model_states.pt"))
    saved = torch.load(first, map_location="cpu", weights_only=False)["module"]  # of this run's private folder
    for name, buffer in module.named_buffers():
        if name in saved:
            buffer.copy_(saved[name])
