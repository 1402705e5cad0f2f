"""Rankings by how much noise a unit can bear: levels of noise that are learned."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from tqdm import tqdm

from search_spaces import InvalidInput, SubnetConfig, SubnetSearchError
from subnet_search.batches import device_of, input_size, to_device
from subnet_search.data import Batch
from subnet_search.elastic.supernet import Supernet
from subnet_search.progress import progress
from subnet_search.ranking.gates import Gates
from subnet_search.ranking.scores import Filters, Ranking, best_first, filters, new_scores
from subnet_search.seeding import derive_seed, kept_generators, start_epoch
from subnet_search.training.losses import cross_entropy

REWARD, STEPS, LR = 0.01, 200, 0.1  # digits: orders of two seeds agree to 0.9 (Spearman) after 200 steps
BETAS = 0.9, 0.999  # of Adam
BAR_AFTER_S = 2.0


@dataclass(frozen=True, eq=False)
class NoiseLevels:
    """How much noise each unit and each skippable block bears; they are comparable across groups.

    Where the loss is quadratic with curvature h in the scale of a unit, its level is sqrt(reward / h).

    Attributes:
        units: group -> level of each of its units, float64 `[group.units]`, on the CPU.
        blocks: block -> level of what it adds to its input.
        reward: lambda; the curvature that a level a tells of is reward / a^2.
    """

    units: Mapping[str, Tensor]
    blocks: Mapping[str, float]
    reward: float

    def ranking(self) -> Ranking:
        """The order of rising levels: what bears least comes first."""
        return best_first({name: -level for name, level in self.units.items()})

    def reordered(self, ranking: Ranking) -> NoiseLevels:
        """The levels of the same units after `supernet.reorder(ranking)`."""
        units = {
            name: levels[ranking[name].cpu()] if name in ranking else levels
            for name, levels in self.units.items()
        }
        return NoiseLevels(units, self.blocks, self.reward)


def levels_to_json(levels: NoiseLevels) -> dict[str, Any]:
    """The levels as plain data."""
    units = {name: found.tolist() for name, found in levels.units.items()}
    return {"reward": levels.reward, "units": units, "blocks": dict(levels.blocks)}


def levels_from_json(content: Mapping[str, Any]) -> NoiseLevels:
    """What `levels_to_json` made."""
    units = {name: torch.tensor(found, dtype=torch.float64) for name, found in content["units"].items()}
    return NoiseLevels(units, dict(content["blocks"]), content["reward"])


def learn_levels(
    loss: Callable[[Tensor], Tensor],
    count: int,
    *,
    reward: float = REWARD,
    steps: int = STEPS,
    lr: float = LR,
    initial: float = 0.3,
    device: torch.device | None = None,
) -> Tensor:
    """Minimises  E loss(a) - reward * sum_u log(a_u)  over noise levels a > 0.

    Adam moves rho, a = softplus(rho), by the derivative by log a, and no rho faster than that of a level which the
    loss does not mind. What is returned is the geometric mean of the levels of the last half of all steps, over which
    chance averages out.

    Args:
        loss: of levels `[count]`, drawing noise of its own at each call.
        count: how many levels there are.
        reward: lambda, for every level that doubles lambda * log 2 is gained.
        steps: how often the loss is asked.
        lr: step size of Adam.
        initial: the level that all begin with.
        device: where the levels live while they are learned.

    Returns:
        Levels, float64 `[count]`, on the CPU.

    Raises:
        InvalidInput: a reward, level, learning rate or number of steps that is not above zero.
        SubnetSearchError: the loss was not finite.
    """
    _check_positive(reward=reward, steps=steps, lr=lr, initial=initial)
    start = math.log(math.expm1(initial))  # softplus of it is the initial level
    rho = torch.full((count,), start, dtype=torch.float64, device=device)
    mean, square, total = (torch.zeros_like(rho) for _ in range(3))
    for step in range(1, steps + 1):
        levels = F.softplus(rho).requires_grad_()
        (slope,) = torch.autograd.grad(loss(levels), [levels])
        slope = levels.detach() * slope - reward  # by log a
        mean.lerp_(slope, 1 - BETAS[0])
        square.lerp_(slope.square(), 1 - BETAS[1])
        root = (square / (1 - BETAS[1] ** step)).sqrt().clamp_min(1e-30)
        rho -= lr * (mean / (1 - BETAS[0] ** step) / root).clamp(-1, 1)
        total += F.softplus(rho).log() * (2 * step > steps)
    num_averaged = steps - steps // 2
    found = (total / num_averaged).exp().cpu()
    if not found.isfinite().all():
        raise SubnetSearchError(
            "noise levels cannot be learned: the loss of the network is not finite; its weights or images are broken"
        )
    return found


def noise_levels(
    supernet: Supernet,
    batches: Iterable[Batch],
    *,
    reward: float = REWARD,
    steps: int = STEPS,
    lr: float = LR,
    seed: int = 0,
) -> NoiseLevels:
    """Learns how much noise every unit, and what every skippable block adds, can bear.

    All weights are frozen, in evaluation mode, in the largest net. For each image of a batch a unit u draws its own
    noise e_u from N(0, 1), and where its channels end its activations are multiplied by 1 + a_u e_u; what comes out
    of a block, y for x, becomes y + a e (y - x). The levels minimise  E cross-entropy - reward * sum log a:  what the
    loss does not need is free to grow noisy. Nothing in the supernet changes.

    Args:
        supernet: trained.
        batches: (input `[B, ...]`, class `[B]`) of training data without augmentation, gone through again and again.
        reward: lambda.
        steps: batches that are looked at.
        lr: step size of Adam.
        seed: of the noise.

    Source:
        Yang, He, Cao, Fan, "A Progressive Sub-Network Searching Framework for Dynamic Inference", 2020,
        arXiv:2009.05681; noise after He, Rakin, Fan, arXiv:1811.09310. Unlike the authors' code, which adds noise to
        weights and trains both together, noise multiplies activations, so that coupled layers share one level; the
        reward is ours, without it every level only shrinks. `weight_noise_ranking` is the authors' form.

    Raises:
        InvalidInput: no batch, batches of another size than the conversion's example, or fewer of them than steps
            that can be read only once.
        SubnetSearchError: the loss is not finite.
    """
    gates, device = Gates(supernet), device_of(supernet)
    generator = torch.Generator().manual_seed(derive_seed(seed, "noise"))
    shown = _cycled(batches, supernet, steps, seed)
    if gates.count == 0:
        return NoiseLevels({}, {}, reward)

    def loss(levels: Tensor) -> Tensor:
        images, labels = next(shown)
        drawn = torch.randn(len(images), len(levels), generator=generator)
        gates.shift = levels * drawn.to(device)
        return cross_entropy(supernet(images), labels)

    with kept_generators(), gates.open():
        found = learn_levels(loss, gates.count, reward=reward, steps=steps, lr=lr, device=device)
    return NoiseLevels(*gates.by_name(found), reward)


def noise_ranking(
    supernet: Supernet,
    batches: Iterable[Batch],
    *,
    reward: float = REWARD,
    steps: int = STEPS,
    lr: float = LR,
    seed: int = 0,
) -> Ranking:
    """Ranks units by how little noise they can bear, the least first; see `noise_levels`.

    Returns:
        For each group the order `[group.units]`, best first.
    """
    return noise_levels(supernet, batches, reward=reward, steps=steps, lr=lr, seed=seed).ranking()


def predicted_increase(levels: NoiseLevels, supernet: Supernet, config: SubnetConfig) -> float:
    """The loss increase that the levels predict for a sub-net: the sum of  reward / (2 a^2)  over what it drops.

    Args:
        levels: in the order of the supernet's units; after `reorder` take `levels.reordered(ranking)`.
        supernet: the one that they were learned on.
        config: a member of its space; what a skipped block holds counts with the block.

    Raises:
        InvalidInput: the levels are of another network, or the config is not in the space.
    """
    _check_same(levels, supernet)
    supernet.space.check(config)
    config = supernet.space.canonical(config)
    kept = supernet.units_of(config)
    dropped = [levels.units[name][kept[name] :] for name in supernet.groups]
    blocks = [levels.blocks[block] for block in supernet.skipped_in(config)]
    gone = torch.cat([*dropped, torch.tensor(blocks, dtype=torch.float64)])
    return float((levels.reward / 2 * gone.square().reciprocal()).sum())


def weight_noise_ranking(
    supernet: Supernet,
    batches: Iterable[Batch],
    *,
    initial: float = 1.0,
    steps: int = STEPS,
    lr: float = 0.05,
    seed: int = 0,
) -> Ranking:
    """Ranks units by the noise that training leaves on the filters that write them, the least first.

    A copy of the network is trained with  w_c + alpha_c sigma n  in place of each filter w_c: n is new N(0, 1) noise
    at every step, sigma the standard deviation of the weight, alpha_c a parameter of the filter that begins
    at `initial` and shrinks the faster the more the loss minds. The score of a unit is the sum over the weights that
    write it of |alpha_c| / mean of |alpha|; the largest go first.

    Args:
        supernet: trained; it stays as it is.
        batches: (input `[B, ...]`, class `[B]`) of training data, gone through again and again.
        initial: alpha to begin with.
        steps: of training, with plain SGD: momentum gave worse orders on digits, and diverged.
        lr: its learning rate.
        seed: of the noise.

    Source:
        Yang, He, Cao, Fan, 2020, arXiv:2009.05681, and the code published for it. Unlike that code, alpha begins at 1
        instead of 0, where it holds no signal; linear layers have noise as well; all layers that write a coupled group
        have a say, and an equal one; and the trained copy is thrown away.

    Returns:
        For each group the order `[group.units]`, best first.

    Raises:
        InvalidInput: as `noise_ranking`.
        SubnetSearchError: training diverged.
    """
    _check_positive(initial=initial, steps=steps, lr=lr)
    trained = copy.deepcopy(supernet).train()
    trained.activate(trained.space.largest())
    for parameter in trained.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
        parameter.grad = None
    writers = {name: filters(trained, group) for name, group in trained.groups.items()}
    weights = {name: found for by_name in writers.values() for name, found in by_name.items()}
    alphas = {name: found.weight.new_full((found.makes.size,), initial) for name, found in weights.items()}
    alphas = {name: alpha.requires_grad_() for name, alpha in alphas.items()}
    optimizer = torch.optim.SGD([*trained.parameters(), *alphas.values()], lr=lr)
    with kept_generators(), torch.enable_grad():
        for images, labels in _cycled(batches, trained, steps, seed):
            noisy = {f"model.{name}": _noisy(found, alphas[name]) for name, found in weights.items()}
            try:
                logits = functional_call(trained, noisy, (images,), tie_weights=False)
            except ValueError as error:  # torch's: a variance needs two values
                raise InvalidInput(
                    f"weight noise cannot be trained on a batch of {len(images)}: {error}; give larger batches"
                ) from error
            loss = cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    scores = new_scores(trained)
    for group, by_name in writers.items():
        for name, found in by_name.items():
            level = alphas[name].detach().double().abs()
            scores[group] -= found.per_unit(trained.groups[group], level / level.mean().clamp_min(1e-30))
    if not all(score.isfinite().all() for score in scores.values()):
        raise SubnetSearchError(f"training with weight noise diverged; take a lower lr than {lr}")
    return best_first(scores)


def _noisy(found: Filters, alpha: Tensor) -> Tensor:
    """The weight with noise of level alpha `[filters]`, in units of the weight's standard deviation."""
    sigma = found.weight.detach().std(correction=0)
    return found.weight + found.beside(alpha) * sigma * torch.randn_like(found.weight)


def _cycled(batches: Iterable[Batch], supernet: Supernet, steps: int, seed: int) -> Iterator[Batch]:
    """So many batches on the supernet's device, in as many passes as that takes; each pass is seeded anew."""
    given, passes = 0, 0
    bar: tqdm[Any] = progress(steps, "noise", "step", delay_s=BAR_AFTER_S)
    while given < steps:
        start_epoch(batches, seed, passes)
        before = given
        for batch in to_device(batches, device_of(supernet), input_size(supernet.example)):
            given += 1
            bar.update()
            if given == steps:
                bar.close()
            yield batch
            if given == steps:
                return
        if given == before:
            raise InvalidInput(
                f"noise is learned in {steps} steps, but the batches can be read only once and ended after {given}; "
                "give a list of batches or a loader"
                if given
                else "noise needs at least one batch to learn levels on, got none"
            )
        passes += 1


def _check_positive(**given: float) -> None:
    for name, value in given.items():
        if not 0 < value < math.inf:
            raise InvalidInput(
                f"{name} must be above 0 and finite, got {value}; leave it out for the default"
            )


def _check_same(levels: NoiseLevels, supernet: Supernet) -> None:
    """Raises `InvalidInput` for levels of a network with other groups or blocks."""
    ours = {name: group.units for name, group in supernet.groups.items()}
    theirs = {name: len(units) for name, units in levels.units.items()}
    if ours != theirs or set(levels.blocks) != set(supernet.blocks):
        other = {**ours, **dict.fromkeys(supernet.blocks)}.items() ^ {
            **theirs,
            **dict.fromkeys(levels.blocks),
        }.items()
        raise InvalidInput(
            "these noise levels were learned on another network: groups or blocks differ in "
            f"{', '.join(sorted({name for name, _ in other})[:3])}; call noise_levels for this one"
        )
