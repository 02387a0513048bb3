"""Bytes per parameter that training keeps on a GPU: ZeRO 0, ZeRO 3, and ZeRO 3 with offload, of one worker.

    python jobs/bench/memory.py                                       # an LM that a CPU has room for
    python jobs/bench/memory.py --layers 32 --width 4096 --batch 8    # NoteLLM-2's 7B LM, on a GPU

Every setting trains the MLRM of `notellm2-paper` (weights at random, bf16) for some steps in a process of its own, with
half of the layers and with all of them: the bytes are those of one more parameter, buffers of a fixed size apart. They
are counted tensor by tensor and sorted by the memory that they are in; without a GPU, by the one that DeepSpeed would
have put them in. With one, the peak that torch saw is beside it, activations included. What does not fit says so. One
JSON line.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from paper_shape import mlrm, notes
from torch import Tensor

from sidray.cluster import free_port
from sidray.models.mlrm import Mlrm
from sidray.training.engine import make_engine
from sidray.training.module import StageModule
from sidray.training.settings import StageSettings, TrainingSettings

SETTINGS: dict[str, dict[str, Any]] = {
    "ZeRO 0": {"zero_stage": 0},
    "ZeRO 3": {"zero_stage": 3},
    "ZeRO 3, optimizer offloaded": {"zero_stage": 3, "offload": "optimizer"},
    "ZeRO 3, parameters offloaded": {"zero_stage": 3, "offload": "parameters"},
}
STEPS = 3


def measure(layers: int, width: int, batch: int, tokens: int, training: TrainingSettings) -> dict[str, Any]:
    """In a process group of this process alone."""
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    stage = StageSettings(name="memory", tasks={"note2note": 1.0}, batch_size=batch, lr=1e-4)
    model = mlrm(layers, torch.device("cpu"), width).train()
    module = StageModule(model, stage)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    engine = make_engine(module, stage, training, STEPS, batch, 1.0, universal=False)
    given = _batch(model, batch, tokens, engine.device)
    for step in range(STEPS):
        if step == 1:
            started = time.perf_counter()  # the first one makes the optimiser's state
        loss, _ = engine(given)
        engine.backward(loss)
        engine.step()
        if not torch.isfinite(loss):
            raise SystemExit(f"the loss of step {step} is {loss}")
    seconds = (time.perf_counter() - started) / (STEPS - 1)
    held = _held(engine, training)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return {"parameters": parameters, "held": held, "peak": peak, "seconds": seconds}


def _batch(model: Mlrm, rows: int, tokens: int, device: torch.device) -> dict[str, Tensor]:
    """What NoteFetch would give: rows / 2 pairs of notes that train does not relate otherwise."""
    given = notes(model, rows, tokens, device)
    assert given.text is not None
    assert given.image is not None
    return {
        "item_row": torch.arange(rows, device=device),
        "note.ids": given.text.ids,
        "note.mask": given.text.mask,
        "image": given.image.values,
        "image.present": given.image.present,
        "related": torch.full((rows, 1), torch.iinfo(torch.int64).max, device=device),
    }


def _held(engine: Any, training: TrainingSettings) -> dict[str, int]:
    """Bytes of all tensors, each storage once, by the memory that they are in."""
    host = set() if torch.cuda.is_available() else {_storage(each) for each in _offloaded(engine, training)}
    gc.collect()
    sizes: dict[tuple[str, int], int] = {}
    for each in gc.get_objects():
        if isinstance(each, Tensor) and each.device.type != "meta" and (memory := each.untyped_storage()).nbytes():
            there = _storage(each) in host or (torch.cuda.is_available() and each.device.type == "cpu")
            sizes["host" if there else "device", _storage(each)] = memory.nbytes()
    return {place: sum(size for (at, _), size in sizes.items() if at == place) for place in ("device", "host")}


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _offloaded(engine: Any, training: TrainingSettings) -> Iterator[Tensor]:
    """What DeepSpeed would have moved to the host where that is another memory."""
    if training.offload != "none":
        zero = engine.optimizer
        yield from zero.fp32_partitioned_groups_flat
        yield from (group.grad for group in zero.fp32_partitioned_groups_flat if group.grad is not None)
        yield zero.grad_partitions_flat_buffer
        for state in zero.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))
    if training.offload == "parameters":
        yield from (each.ds_tensor for each in engine.module.parameters() if not each.ds_persist)


def compare(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One setting with half of the layers and with all."""
    small, large = (_in_a_process(name, layers, arguments) for layers in (arguments.layers // 2, arguments.layers))
    if small is None or large is None:
        return {"fits": False}
    more = large["parameters"] - small["parameters"]
    places = large["held"]
    return {
        "fits": True,
        "parameters": large["parameters"],
        "bytes/parameter": {place: round((places[place] - small["held"][place]) / more, 2) for place in places},
        "peak GiB": None if large["peak"] is None else round(large["peak"] / 2**30, 2),
        "seconds/step": round(large["seconds"], 3),
    }


def _in_a_process(name: str, layers: int, arguments: argparse.Namespace) -> dict[str, Any] | None:
    """None: out of memory."""
    shape = [f"--{key}={getattr(arguments, key)}" for key in ("width", "batch", "tokens")]
    command = [sys.executable, __file__, f"--layers={layers}", *shape, f"--only={name}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode == 0:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    if "OutOfMemoryError" in done.stderr or done.returncode == -9:
        return None
    raise SystemExit(f"{name}: {done.stderr[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--only", choices=list(SETTINGS), help="one setting, in this process")
    arguments = parser.parse_args()
    shape = (arguments.layers, arguments.width, arguments.batch, arguments.tokens)
    if arguments.only:
        training = TrainingSettings.model_validate({"precision": "bf16", **SETTINGS[arguments.only]})
        print(json.dumps(measure(*shape, training)))
        return
    found = {name: compare(name, arguments) for name in SETTINGS}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(json.dumps({"bench": "memory", "device": device, "layers": shape[0], "width": shape[1], "settings": found}))


if __name__ == "__main__":
    main()
