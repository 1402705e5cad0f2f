"""Scores sub-nets on growing shares of search-validation, cheaply enough to look at each step down a path."""

from __future__ import annotations

from search_spaces import SubnetConfig
from subnet_search.batches import first_images, input_size, resolve_device, sample_images
from subnet_search.data import Splits
from subnet_search.elastic.supernet import Supernet
from subnet_search.measure.accuracy import share_right
from subnet_search.measure.passes import SharedPasses
from subnet_search.searchers.path import Score
from subnet_search.settings import ProgressiveSettings
from subnet_search.training.losses import cross_entropy


class SharedScorer:
    """Loss and accuracy of sub-nets; each look recalibrates, and computes only what differs from looks before.

    The first look is at few images, the final one at more, those of the first among them; they are drawn from
    search-validation once, the same for all sub-nets, so that losses differ by the sub-nets alone.

    Args:
        supernet: its weights may change between looks if `forget` is called.
        splits: `search_val` and `calibration` are read.
        settings: how many images each look takes.

    Attributes:
        images: image forwards so far, recalibration included; what looks share counts as if it were computed anew.
        macs: multiply-adds of these.
    """

    def __init__(self, supernet: Supernet, splits: Splits, settings: ProgressiveSettings) -> None:
        self._supernet, self._settings = supernet, settings
        self._device = resolve_device(settings.device)
        self.images, self.macs = 0, 0
        size = input_size(supernet.example)
        source = splits.train if splits.calibration is None else splits.calibration
        self._calibration = first_images(source, settings.calibration_images, settings.seed, size)
        seen = sample_images(splits.search_val, settings.final_images, settings.seed, size)
        self._shown = {True: seen, False: sample_images(seen, settings.first_images, settings.seed)}
        self.forget()

    def forget(self) -> None:
        """Forgets what was computed, after the weights have changed."""
        self._passes = {
            final: SharedPasses(
                self._supernet,
                self._calibration,
                shown,
                device=self._device,
                memory_bytes=self._settings.memory_mib * 2**19,  # a half each
                size=input_size(self._supernet.example),
                alike=True,
            )
            for final, shown in self._shown.items()
        }

    def __call__(self, config: SubnetConfig, final: bool) -> Score:
        """The first or the final look at a sub-net.

        Raises:
            SubnetSearchError: its answers are not finite.
        """
        logits, targets, _ = self._passes[final].answers(config)
        count = len(targets)
        if self._supernet.uses_batch_norm:
            count += sum(len(inputs) for inputs, _ in self._calibration)
        self.count(config, count)
        return Score(float(cross_entropy(logits, targets)), share_right(logits, targets))

    def count(self, config: SubnetConfig, images: int) -> None:
        """Adds image forwards of a sub-net, such as those of tuning."""
        self.images += images
        self.macs += images * int(self._supernet.costs.macs(self._supernet.space.encode([config]))[0])
