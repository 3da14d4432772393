"""What tests of graphs share."""

from typing import Any

import pytest
import torch

from ppl_vae.infer import graphs


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Graphs of steps are run as they were written down, and counted."""
    made: list[int] = []

    def as_it_is(graph: Any, inputs: list[torch.Tensor], **options: Any) -> Any:
        if not options:  # the loop itself
            made.append(1)
        return graph

    monkeypatch.setattr(graphs, "_by_inductor", as_it_is)
    monkeypatch.setattr(graphs, "_compiled", {})
    return made
