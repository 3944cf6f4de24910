import torch
from torch import nn
from transformers.activations import ACT2FN

from pipeline.models.activations import use_fused_activations


def test_a_formula_becomes_a_kernel_that_gives_the_same() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(ACT2FN["gelu_new"]), ACT2FN["silu"])
    values = torch.linspace(-6, 6, 101)
    wanted = model[1](values)
    use_fused_activations(model)
    assert type(model.get_submodule("1.0")) is nn.GELU
    torch.testing.assert_close(model[1](values), wanted)
    assert type(model[2]) is type(ACT2FN["silu"])
