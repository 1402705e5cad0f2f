"""Checkpoints of a training loop: one file that is the truth, and a copy for readers.

Weights, momentum and the place in the loop lie in *one* safetensors file, so a crash can never pair the
weights of one step with the step number of another; the JSON beside it repeats the place for people and
reports.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from search_spaces import InvalidInput, SubnetSearchError
from subnet_search.elastic.states import copy_state
from subnet_search.record import Run


@dataclass
class Place:
    """Where a loop stands, and what it must remember to go on from there."""

    epoch: int = 0  # finished epochs
    batch: int = 0  # finished batches of the current epoch
    step: int = 0  # finished steps in all
    loss_sum: float = 0.0  # over the current epoch
    losses: list[float] = field(default_factory=list)  # mean of each finished epoch
    seconds: float = 0.0


class Checkpoints:
    """Writes and reads the checkpoint `name` of a run.

    Args:
        run: the run folder.
        name: file name without ending, such as "checkpoint".
        identity: JSON-able facts that must be equal for a checkpoint to be continued: "stage", "epochs" and
            all other settings that decide what comes out.
    """

    def __init__(self, run: Run, name: str, identity: Mapping[str, Any]) -> None:
        self.run, self.name = run, name
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, place: Place) -> None:
        """Writes the checkpoint whole or not at all.

        Raises:
            SubnetSearchError: a weight is not finite; the checkpoint before stays.
        """
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise SubnetSearchError(
                    f"{name} is no longer finite after step {place.step}, epoch {place.epoch + 1}; "
                    f"{self.way_out}"
                )
        for name, parameter in model.named_parameters():
            buffer = (
                optimizer.state[parameter].get("momentum_buffer") if parameter in optimizer.state else None
            )
            if buffer is not None:
                tensors[f"momentum.{name}"] = buffer
        facts = vars(place)
        metadata = {"place": json.dumps(facts), "identity": json.dumps(self.identity)}
        # cloned: tied weights share memory, which the format refuses
        plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        with self.run.writing(f"{self.name}.safetensors") as path:
            save_file(plain, path, metadata=metadata)
        self._tell(facts)

    def _tell(self, facts: Mapping[str, Any]) -> None:
        """Writes the copy for readers."""
        self.run.write_json(f"{self.name}.json", {**facts, **self.identity})

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Place | None:
        """Puts the checkpoint into model and optimizer; None when there is none of this stage.

        Raises:
            InvalidInput: the checkpoint is damaged, or was written with other settings or for another
                network.
        """
        if not self.run.has(f"{self.name}.safetensors"):
            return None
        with safe_open(self.run.verify(f"{self.name}.safetensors"), framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if not self._continues(json.loads(metadata["identity"]), json.loads(metadata["place"])["epoch"]):
            return None
        try:
            copy_state(model, _part(tensors, "model."))
        except InvalidInput as error:
            raise InvalidInput(
                f"{self.name}.safetensors of run {self.run.folder} belongs to another network: {error}, "
                "or use another run folder"
            ) from None
        for name, parameter in model.named_parameters():
            if (buffer := tensors.get(f"momentum.{name}")) is not None:
                optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(buffer)
        place = Place(**json.loads(metadata["place"]))
        self._tell(vars(place))  # a process that died between the two files has left an older copy
        return place

    @property
    def way_out(self) -> str:
        """What to do after a failure, naming the checkpoint that is kept."""
        kept = f"the last good checkpoint is kept in {self.run.folder}/{self.name}.safetensors. "
        return (kept if self.run.has(f"{self.name}.safetensors") else "") + CURE

    def _continues(self, found: dict[str, Any], epoch: int) -> bool:
        """Whether to go on from there; a finished checkpoint of another stage has done its work."""
        names = sorted({*found, *self.identity})
        other = [name for name in names if found.get(name) != self.identity.get(name)]
        if other and not ("stage" in other and epoch >= found["epochs"]):
            told = ", ".join(f"{name} {found.get(name)!r}, now {self.identity.get(name)!r}" for name in other)
            raise InvalidInput(
                f"{self.name}.safetensors of run {self.run.folder} was written with other settings: {told}. "
                "Go on with those settings or use another run folder"
            )
        return not other


def stored_place(run: Run, name: str) -> tuple[dict[str, Any], Place] | None:
    """Identity and place of the checkpoint `name`, without its tensors; None when there is none.

    Raises:
        InvalidInput: the file is damaged.
    """
    if not run.has(f"{name}.safetensors"):
        return None
    with safe_open(run.verify(f"{name}.safetensors"), framework="pt") as file:
        metadata = file.metadata()
    return json.loads(metadata["identity"]), Place(**json.loads(metadata["place"]))


CURE = "Try a smaller lr or a longer warm-up in a new run"


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
