"""One of two processes that train a gated model together; test_gated_processes.py starts them and judges.

`python run_gated_processes.py FOLDER RANK`: FOLDER is where the processes meet. Prints one line of JSON, for data
parallel and for fully sharded training: how far weights after three steps are from those of one process, and the steps.
"""

import json
import os
import sys

import torch
from accelerate import Accelerator
from gated_models import gated, text
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

STEPS, ROWS = 3, 4


def train(model, run, optimizer, rows, backward):
    for step in range(STEPS):
        batch = text(ROWS, 40, seed=step)[rows]
        optimizer.zero_grad()
        backward(run(batch, labels=batch, use_cache=False).loss)
        optimizer.step()


def measure(rank, kind):
    alone, model = gated().train(), gated().train()
    train(alone, alone, torch.optim.SGD(alone.parameters(), 0.1), slice(None), torch.Tensor.backward)
    if kind == "ddp":
        accelerator = Accelerator(cpu=True)
        run, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.1))
        backward, trained = accelerator.backward, accelerator.unwrap_model(run)
    else:  # accelerate leaves it out on CPUs
        mesh = distributed.init_device_mesh("cpu", (2,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        run = trained = fully_shard(model, mesh=mesh)
        optimizer, backward = torch.optim.SGD(model.parameters(), 0.1), torch.Tensor.backward
    train(model, run, optimizer, slice(rank * 2, rank * 2 + 2), backward)
    found = {name: one.full_tensor() if isinstance(one, DTensor) else one for name, one in trained.named_parameters()}
    return {
        "worst": max((found[name] - one).abs().max().item() for name, one in alone.named_parameters()),
        "steps": int(trained.model.gate_steps.count),
        "sharded": any(isinstance(one, DTensor) for one in trained.parameters()),
        "type": type(run).__name__,
    }


def main(folder, rank):
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", MASTER_ADDR="localhost")
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=int(rank), world_size=2)
    print(json.dumps({kind: measure(int(rank), kind) for kind in ("ddp", "fsdp")}))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
