"""Training by several processes (ranks) at once, on one machine or more, as `torchrun` starts them.

Every rank holds the whole supernet, draws the same batches and the same sub-nets, as both depend on the seed and the
step alone, and answers for its rows of each batch. One all-reduce then adds up everything: gradients, running
statistics of batch norm, the loss, and whether a rank was interrupted or failed. So all ranks do the same step, and
stop after the same one.

Batch norm normalises with a rank's own rows; its running statistics are the mean over ranks, so that every rank holds
the same ones. A step whose loss is a mean over rows, on a network whose batch norms are frozen or that has none, gets
the gradients of the whole batch.
"""

from __future__ import annotations

import atexit
import os
import platform
import socket
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from functools import reduce
from importlib.metadata import version
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_leaves

from search_spaces import InvalidInput, SubnetSearchError
from subnet_search.batches import check_batch, resolve_device, rows_of
from subnet_search.data import Batch
from subnet_search.seeding import kept_generators, seed_everything, start_epoch

T = TypeVar("T")
LONGEST_STEP = timedelta(minutes=30)  # after which ranks give up waiting for one another
FEWEST_ROWS = 2  # of a short last batch: batch norm cannot learn from one
_alone = ContextVar("_alone", default=False)


class Disagreement(InvalidInput):
    """Ranks that cannot train together; raised on all of them."""


class StoppedElsewhere(SubnetSearchError):
    """Another rank was stopped or failed; raised on those that were not, after the same step."""


@dataclass(frozen=True, slots=True)
class World:
    """How many ranks train together, and which of them this process is. Rank 0 leads: it alone writes."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes checkpoints and shows progress."""
        return self.rank == 0


ALONE = World()


def current_world() -> World:
    """The ranks that this process trains with: those of a process group, which is made where torchrun started it."""
    if _alone.get() or not dist.is_available():
        return ALONE
    if not dist.is_initialized() and dist.is_torchelastic_launched():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        with telling_of_lost_ranks():
            dist.init_process_group(backend, timeout=LONGEST_STEP)
        atexit.register(dist.destroy_process_group)
    return World(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else ALONE


@contextmanager
def alone(yes: bool = True) -> Iterator[None]:
    """Inside the scope this process trains by itself, whatever started it; `yes=False` undoes that."""
    token = _alone.set(yes)
    try:
        yield
    finally:
        _alone.reset(token)


def device_of_rank(name: str, world: World) -> torch.device:
    """The device of that name: of several ranks each takes a GPU of its own.

    Raises:
        InvalidInput: the device is not there, all ranks would share one GPU, or a machine has fewer GPUs than ranks.
    """
    device = resolve_device(name)
    if world.size == 1 or device.type != "cuda":
        return device
    if device.index is not None:
        raise InvalidInput(
            f'device "{name}" would be shared by {world.size} ranks; give "cuda" or "auto", then each has its own'
        )
    count = torch.cuda.device_count()
    place = int(os.environ.get("LOCAL_RANK", world.rank % count))
    if place >= count:
        raise InvalidInput(
            f"rank {world.rank} is number {place} on {socket.gethostname()}, which has {count} GPUs; "
            f'start at most {count} ranks there (--nproc-per-node {count}), or train on "cpu"'
        )
    torch.cuda.set_device(place)
    return torch.device("cuda", place)


def agree(world: World, facts: Mapping[str, object]) -> None:
    """Compares what must be equal on all ranks; the versions of this package and of torch are always among it.

    Raises:
        Disagreement: on every rank, naming the first fact that differs.
        SubnetSearchError: a rank has ended.
    """
    if world.size == 1:
        return
    versions = {"subnet-search": version("subnet-search"), "torch": torch.__version__}
    rows: list[Any] = [None] * world.size
    with telling_of_lost_ranks():
        dist.all_gather_object(rows, (platform.node(), {**versions, **facts}))
    (_, first), *others = rows
    for rank, (host, row) in enumerate(others, start=1):
        for name in first:
            if row.get(name) != first[name]:
                raise Disagreement(
                    f"all ranks must train the same; {name} is {first[name]!r} on rank 0 and {row.get(name)!r} on "
                    f"rank {rank} ({host}). Start all with the same command, package, settings and data"
                )


def told_by_first(world: World, make: Callable[[], T]) -> T:
    """What `make` gives on rank 0, on every rank; what it refuses there is refused everywhere."""
    if world.size == 1:
        return make()
    told: list[Any] = [None, None]
    if world.leads:
        try:
            told[0] = make()
        except InvalidInput as error:
            told[1] = str(error)
    with telling_of_lost_ranks():
        dist.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise Disagreement(told[1])
    made: T = told[0]
    return made


def spread(world: World, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Gives every rank the weights, buffers and momentum of rank 0."""
    if world.size == 1:
        return
    tensors = [tensor for tensor in model.state_dict().values() if tensor.numel()]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moved = [optimizer.state[p].get("momentum_buffer") is not None for p in parameters]
    for parameter, moves in zip(parameters, told_by_first(world, lambda: moved), strict=True):
        if moves:
            state = optimizer.state[parameter]
            state.setdefault("momentum_buffer", torch.empty_like(parameter))
            tensors.append(state["momentum_buffer"])
    with telling_of_lost_ranks(), torch.no_grad():
        for tensor in tensors:
            sent = tensor.detach().contiguous().reshape(-1).view(torch.uint8).clone()
            dist.broadcast(sent, src=0)
            tensor.copy_(sent.view(tensor.dtype).view(tensor.shape))


def look_at_first_batch(batches: Iterable[Batch], seed: int) -> tuple[int, dict[str, object]]:
    """Rows of the first batch, and what all ranks must find alike about it."""
    with kept_generators():
        start_epoch(batches, seed, 0)
        batch = next(iter(batches))
    check_batch(batch)
    rows, digest = len(tree_leaves(batch[0])[0]), 0
    for tensor in tree_leaves(batch):
        digest = zlib.crc32(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy(), digest)
    whole = "the first batch, of which every rank is given all rows (no DistributedSampler)"
    return rows, {"the rows of a batch": rows, whole: f"crc {digest:08x}"}


def check_rows(world: World, rows: int) -> None:
    """Raises `Disagreement`, on all ranks alike, unless so many rows divide among them."""
    if rows % world.size:
        fitting = max(rows // world.size, 1) * world.size
        raise Disagreement(
            f"a batch must divide among {world.size} ranks, got {rows} rows; set batch_size to a multiple of "
            f"{world.size}, such as {fitting}, or start another number of ranks"
        )


class Exchange:
    """What ranks do in each step of one training: take their rows, and add up what came out.

    Args:
        world: the ranks; with one of them nothing is exchanged.
        model: whose gradients and running statistics are added up.
        rows: of every batch but a short last one.
    """

    def __init__(self, world: World, model: nn.Module, rows: int = 0) -> None:
        self.world, self.rows, self.stop = world, rows, False
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
        dtypes = (p.dtype for p in self._trained)
        self._dtype = reduce(torch.promote_types, dtypes, torch.float32)

    def share(self, batch: Batch) -> tuple[Batch, float]:
        """This rank's rows of a batch, and their share of it; a short last batch may leave ranks without any."""
        count, size, rank = len(tree_leaves(batch[0])[0]), self.world.size, self.world.rank
        takers = size if count == self.rows else max(1, min(size, count // FEWEST_ROWS))
        begin, end = (min(place, takers) * count // takers for place in (rank, rank + 1))
        rows = slice(begin, end)
        return (rows_of(batch[0], rows), rows_of(batch[1], rows)), (end - begin) / count

    def seed(self, seed: int, step: int) -> None:
        """Lets what the network draws differ from rank to rank; sub-nets are drawn from a generator of their own."""
        if not self.world.leads:
            seed_everything(seed, "step", step, "rank", self.world.rank)

    @torch.no_grad()
    def add_up(self, loss: float, share: float, *, stop: bool, failed: bool = False) -> float:
        """Makes gradients and running statistics the means over ranks, weighted by their rows, in one all-reduce.

        A gradient that is None counts as zero, unless it is None on all ranks. Sets `stop` where any rank was
        interrupted.

        Returns:
            The mean loss.

        Raises:
            StoppedElsewhere: another rank failed.
            SubnetSearchError: another rank has ended.
        """
        if self.world.size == 1:
            self.stop = stop
            return loss
        means = [*(p.grad if p.grad is not None else torch.zeros_like(p) for p in self._trained)]
        statistics = self._statistics()
        device = self._trained[0].device
        parts = [part.detach().reshape(-1).to(self._dtype) for part in (*means, *statistics)]
        averaged = torch.cat([*parts, torch.tensor([loss], dtype=self._dtype, device=device)])
        averaged = torch.zeros_like(averaged) if failed or not share else averaged * share
        told = [float(stop), float(failed), *(float(p.grad is not None) for p in self._trained)]
        flat = torch.cat([averaged, torch.tensor(told, dtype=self._dtype, device=device)])
        with telling_of_lost_ranks():
            dist.all_reduce(flat)
        averaged, stops, failures, seen = flat.split([len(averaged), 1, 1, len(self._trained)])
        if failures.item() and not failed:
            raise StoppedElsewhere("another rank failed in this step; its own message says in what")
        self.stop = bool(stops.item())
        *new, mean_loss = averaged.split([*(tensor.numel() for tensor in (*means, *statistics)), 1])
        for parameter, mean, num_seen in zip(self._trained, new, seen.tolist(), strict=False):
            if num_seen:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad.copy_(mean.view(parameter.shape))
        for old, mean in zip(statistics, new[len(means) :], strict=True):
            old.copy_(mean.view(old.shape))
        return float(mean_loss.item())

    def _statistics(self) -> list[Tensor]:
        """Running means and variances of the batch norms that learn."""
        pairs = [(m.running_mean, m.running_var) for m in self._norms if m.training]
        return [tensor for pair in pairs for tensor in pair if tensor is not None]


@contextmanager
def telling_of_lost_ranks() -> Iterator[None]:
    """Says what became of the other ranks where torch speaks of sockets."""
    try:
        yield
    except RuntimeError as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise SubnetSearchError(
            f"another rank has ended or cannot be reached ({line[:200]}); its own message, if any, says why. "
            "Start all ranks again: training goes on from the last checkpoint"
        ) from error
