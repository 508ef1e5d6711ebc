"""What each process of `test_distributed` runs, under torchrun: every case's gradients against
those of one process on the whole batch. Writes {case: worst difference, or what went wrong}."""

import json
import os
import sys
import traceback

import torch
import torch.distributed as dist
from distributed_cases import DDP, FSDP, MODELS, ROWS
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import dfa_kernels as dfa

STEPS = 2  # DDP rebuilds its buckets, FSDP its prefetching, after the first


def built(kind):
    torch.manual_seed(0)
    model, options, inputs = MODELS[kind]
    return model(), options, inputs(ROWS)


def loss(output, rows):
    """A mean over rows, so that the mean over ranks is that of the whole batch."""
    targets = torch.linspace(-1, 1, ROWS * 3).reshape(ROWS, 3)[rows]
    return (output - targets).square().mean()


def single(kind):
    model, options, x = built(kind)
    net = dfa.DFA(model, **options)
    loss(net(x), slice(None)).backward()
    return {n: p.grad for n, p in net.named_parameters()}


def mine():
    share = ROWS // dist.get_world_size()
    return slice(dist.get_rank() * share, (dist.get_rank() + 1) * share)


def ddp(kind, accumulate=False, **options):
    model, chosen, x = built(kind)
    net = dfa.DFA(model, **chosen)
    replica = DistributedDataParallel(net, **options)
    for _ in range(STEPS):
        net.zero_grad()
        if accumulate:  # the same rows twice, half the loss each
            with replica.no_sync():
                (loss(replica(x[mine()]), mine()) / 2).backward()
            (loss(replica(x[mine()]), mine()) / 2).backward()
        else:
            loss(replica(x[mine()]), mine()).backward()
    return {n: p.grad for n, p in net.named_parameters()}


def fsdp(kind, reshard, first, low_precision=False):
    model, options, x = built(kind)
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if low_precision else None
    policy = {"mp_policy": policy} if policy else {}
    net = dfa.DFA(model, **options) if first == "wrapped" else None
    for child in model.children():
        if any(p.requires_grad for p in child.parameters()):
            fully_shard(child, reshard_after_forward=reshard, **policy)
    if net is None:
        net = dfa.DFA(model, **options)
    fully_shard(net, reshard_after_forward=reshard, **policy)
    for _ in range(STEPS):
        net.zero_grad()
        loss(net(x[mine()]).float(), mine()).backward()
    return {n: None if p.grad is None else p.grad.full_tensor() for n, p in net.named_parameters()}


def worst(ours, wanted):
    """The largest difference, in units of the largest element of that gradient."""
    found = 0.0
    for name, truth in wanted.items():
        if truth is None:
            assert ours[name] is None or not ours[name].any(), f"{name} should have no gradient"
            continue
        assert ours[name] is not None, f"{name} has no gradient"
        found = max(found, ((ours[name] - truth).abs().max() / truth.abs().max()).item())
    return found


def main(folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    results = {}
    for run, cases in ((ddp, DDP), (fsdp, FSDP)):
        for label, arguments in cases.items():
            wanted = single(arguments["kind"])
            torch.manual_seed(dist.get_rank() + 1)  # B must not depend on it
            try:
                results[label] = worst(run(**arguments), wanted)
            except Exception:
                results[label] = traceback.format_exc()
    with open(os.path.join(folder, f"{dist.get_rank()}.json"), "w") as file:
        json.dump(results, file)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
    # DDP and FSDP keep the process group, and so gloo's threads, beyond destroy_process_group: one
    # that still holds a tensor when Python has begun to end aborts the process.
    os._exit(0)
