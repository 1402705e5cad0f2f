"""How probable it is that a sub-net can be evaluated at all, learnt from those that failed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesClassifier

Floats = NDArray[np.float64]

TREES = 50
# Where nothing else is expected to add anything, any chance would be taken; one below counts as none.
HOPELESS = 0.1


class Success:
    """Trees that tell sub-nets that failed from those that did not; certain of success while none has failed.

    Trees find thresholds such as "narrower than 16 channels" from few failures. What failed by chance lowers the hopes
    of its neighbours until one of these succeeds.
    """

    def __init__(self) -> None:
        self._trees: ExtraTreesClassifier | None = None

    @property
    def is_certain(self) -> bool:
        """Whether none has failed."""
        return self._trees is None

    def learn(self, traits: Floats, ok: NDArray[np.bool_]) -> None:
        """Learns from all evaluations anew.

        Args:
            traits: knobs and known costs `[num_rows, num_traits]` of sub-nets, some of which succeeded.
            ok: which ones `[num_rows]`.
        """
        trees = ExtraTreesClassifier(TREES, max_features=None, random_state=0)
        self._trees = None if ok.all() else trees.fit(traits, ok)

    def log_chances(self, traits: Floats) -> Floats:
        """Logarithms of the probabilities of success `[num_rows]`."""
        if self._trees is None or not len(traits):
            return np.zeros(len(traits))
        chances = self._trees.predict_proba(traits)[:, 1]
        return np.asarray(np.where(chances < HOPELESS, -np.inf, np.log(np.maximum(chances, HOPELESS))))
