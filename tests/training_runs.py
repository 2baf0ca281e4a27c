"""Training on one or several processes of this machine, as torchrun would start them, for tests/test_parallel.py."""

import os
import signal
import socket

import numpy as np
import torch
from torch import multiprocessing

from costmodel import parallel
from costmodel.codecs.grids import LogGrid
from costmodel.model import checkpoint, decoder
from costmodel.model.grid_head import GridHead
from costmodel.records import UserError
from costmodel.train import Group, TrainConfig, fresh_members, train


class Stopped(Exception):
    """Raised by the test in place of a step."""


def examples(objective, *, sources=True):
    """Five kernels of one to three spaces, with failures and rows of a search, or their suffixes as texts."""
    rng = np.random.default_rng(0)
    groups = []
    for kernel in range(5):
        for space in range(1 + kernel % 3):
            numbers = rng.permutation(np.arange(1, 1000))[: 12 + 9 * space]
            suffixes = [[*map(int, f"{n:03d}"), 10] for n in numbers]
            failed = numbers % 7 == 0
            z = np.where(failed, np.nan, np.log2(numbers) - 5)
            source, contexts = ([11, kernel] if sources else []), [[12, kernel, space], [13]]
            groups.append(Group(source, contexts, suffixes, z, failed, rank_only=space == 2))
    return groups if objective == "latency" else [token for group in groups for token in group.suffixes]


def members(precision):
    config = decoder.small_config(16, hidden_size=32, layers=2, heads=2)
    made = fresh_members(config, lambda width: GridHead(width, LogGrid()), seeds=(0,))
    for member in made:
        member.backbone.to(precision)
        member.head.to(precision)
    return made


def run(processes, objective, folder, *, exact=False, stop_at=None, killed=None, data=None):
    """(gradients of each step, weights at the end); it ends before step `stop_at` of six, where that is given.

    Optimizers enlarge rounding without bound: Muon works in bfloat16, and Adam divides small gradients by small
    numbers. So either the learning rates are close to 0 and all gradients are of the same weights, or the run is
    `exact`: in float64, and without sources, since the norms of what spaces share are in float32 whatever the weights.
    `killed` is the rank that is killed in the step where the others would have stopped.
    """
    torch.set_num_threads(1)
    clip, gradients = torch.nn.utils.clip_grad_norm_, []

    def watched(parameters, *limits):
        if len(gradients) == stop_at:
            if killed == processes.rank:
                os.kill(os.getpid(), signal.SIGKILL)
            elif killed is None:
                raise Stopped
        gradients.append([None if p.grad is None else p.grad.clone() for p in parameters])
        return clip(parameters, *limits)

    rates = {} if exact else {"muon_lr": 1e-9, "adamw_lr": 1e-9}
    config = TrainConfig(
        objective=objective,
        steps=6,
        rows=40,
        groups=3,
        warmup_steps=3,
        window=9,
        windows=5,
        checkpoint_steps=2,
        **rates,
    )
    trained = members(torch.float64 if exact else torch.float32)
    torch.nn.utils.clip_grad_norm_ = watched
    try:
        train(
            data or examples(objective, sources=not exact),
            config,
            members=trained,
            checkpoints=folder,
            processes=processes,
        )
    except Stopped:
        pass
    finally:
        torch.nn.utils.clip_grad_norm_ = clip
    weights = [p.detach().clone() for part in (trained[0].backbone, trained[0].head) for p in part.parameters()]
    return gradients, weights


def history(folder, objective):
    """What the checkpoint says of each step, and its number."""
    state = checkpoint.load_training(folder / f"{objective}-0.safetensors")[1]
    return state["history"], state["step"]


def together(count, *arguments, **options):
    """`run` on so many processes: by rank what it returned, or the UserError's text; None where it was killed."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training_runs"])
    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    started = [
        context.Process(target=_one, args=(rank, count, port, pipe[1], arguments, options))
        for rank, pipe in enumerate(pipes)
    ]
    for process in started:
        process.start()
    for _, child_end in pipes:
        child_end.close()
    answers = []
    for process, (parent_end, _) in zip(started, pipes, strict=True):
        try:
            answers.append(parent_end.recv())
        except EOFError:
            answers.append(None)
        process.join()
    return answers


def _one(rank, count, port, pipe, arguments, options):
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in told.items()}, GLOO_SOCKET_IFNAME="lo")
    data = options.pop("data_of_rank", None)
    try:
        with parallel.joined() as processes:
            answer = run(processes, *arguments, data=data[rank] if data else None, **options)
    except UserError as error:
        answer = str(error)
    # as bytes in the pipe: a tensor would be shared through this process, which ends
    pipe.send(answer if isinstance(answer, str) else tuple(_plain(part) for part in answer))


def _plain(value):
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if value is None else value.numpy()
