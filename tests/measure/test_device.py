from __future__ import annotations

import json

import torch

from subnet_search.measure import describe_device


def test_the_machine_is_described_as_plain_data() -> None:
    found = describe_device()
    assert json.loads(json.dumps(found)) == found
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert all(found[name] for name in ("cpu", "cores", "os", "python", "torchvision"))
