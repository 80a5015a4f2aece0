"""One of several processes that hold a model together; test_tensor_parallel.py starts them and judges.

`python run_tensor_parallel.py FOLDER RANK PROCESSES`: FOLDER holds the checkpoints and is where the processes meet.
Prints one line of JSON: for every model, what this process saw against the same model in one process.
"""

import json
import os
import sys

import torch
from answers import answers, logits
from patch_cases import make_variant
from torch import distributed
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

import sa_patch

CASES = ("full", "swa", "sa", "sa-bucket", "sa-heads_each", "moba")
KINDS = ("qwen3", "qwen3_moe")
TOKENS = torch.randint(1, 97, (1, 48), generator=torch.Generator().manual_seed(1))


def gradient(model):
    """Of the loss under sa, for the first layer's keys: [kv_heads * head_dim, hidden_size]."""
    with sa_patch.apply(model, variant=make_variant("sa"), kernel="torch"):
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    found = model.model.layers[0].self_attn.k_proj.weight.grad
    return found.full_tensor() if isinstance(found, DTensor) else found


def patched(model, case):
    with sa_patch.apply(model, variant=make_variant(case), kernel="torch") as patch:
        return *answers(model, TOKENS), patch.calls


def compare(whole, part, case):
    """One patched model in this process alone, `whole`, and in all of them together, `part`."""
    (expected, *text), (found, *same_text) = patched(whole, case), patched(part, case)
    return {"worst": (found - expected).abs().max().item(), "same_tokens_and_calls": text == same_text}


def refusal(model):
    """Why the heads of a layer can't share their blocks when they are in several processes."""
    try:
        sa_patch.apply(model, "routed", 12, pool="layer")
    except NotImplementedError as error:
        return str(error)


def measure(folder, kind):
    whole = AutoModelForCausalLM.from_pretrained(f"{folder}/{kind}").eval()
    plan = DistributedConfig(tp_plan="auto")
    part = AutoModelForCausalLM.from_pretrained(f"{folder}/{kind}", distributed_config=plan).eval()
    before = logits(part, TOKENS)
    logits_seen = {case: compare(whole, part, case) for case in CASES}
    expected, found = gradient(whole), gradient(part)
    return {
        "logits": logits_seen,
        "gradient": ((found - expected).abs().max() / expected.abs().max()).item(),
        "held_rows": part.model.layers[0].self_attn.q_proj.weight.to_local().shape[0],
        "refusal": refusal(part),
        "restored": torch.equal(logits(part, TOKENS), before),
    }


def main(folder, rank, processes):
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=processes)
    meeting = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=int(rank), world_size=int(processes))
    print(json.dumps({kind: measure(folder, kind) for kind in KINDS}))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
