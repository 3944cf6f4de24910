"""Neither the engine nor the peer that it is measured beside tells Intel of its use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'corpusmill[openvino]'")

MODEL = """
import torch
class Plus(torch.nn.Module):
    def forward(self, input_ids):
        return (input_ids + 1.0,)
given = {"input_ids": torch.ones((1, 3), dtype=torch.long)}
"""
ENGINE = """
from pathlib import Path
from pipeline.models.conversion import _graph, _save
from pipeline.models.graphs import Graph
from pipeline.models.open_vino import _compiled
_save(_graph(Plus(), given), Path.home())
print(_compiled(Graph(Path.home(), "Plus", {}), "float32", 1, None)(dict(given))[0].tolist())
"""
PEER = """
from types import SimpleNamespace
from jobs.bench.peers.open_vino import OpenVino
print(OpenVino(SimpleNamespace(cores=1)).compiled(Plus(), given)(given).tolist())
"""
TOLD = """
from openvino.tools import ovc
print(type(ovc.telemetry).__module__)
"""


@pytest.mark.parametrize("use", [ENGINE, PEER])
def test_a_process_that_converts_a_model_tells_nobody(use: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {"HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", MODEL + use + TOLD], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == ["[[2.0, 2.0, 2.0]]", "openvino.tools.ovc.telemetry_stub"], done.stderr
    assert not (tmp_path / "intel").exists()  # where who is counted gets a number
