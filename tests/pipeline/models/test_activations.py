import torch
from torch import nn
from transformers.activations import ACT2FN

from pipeline.models.activations import activate_in_place, use_fused_activations


def test_a_formula_becomes_a_kernel_that_gives_the_same() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(ACT2FN["gelu_new"]), ACT2FN["silu"])
    values = torch.linspace(-6, 6, 101)
    wanted = model[1](values)
    use_fused_activations(model)
    assert type(model.get_submodule("1.0")) is nn.GELU
    torch.testing.assert_close(model[1](values), wanted)
    assert type(model[2]) is type(ACT2FN["silu"])


def test_in_place_it_gives_the_same_where_it_read() -> None:
    model = nn.Sequential(ACT2FN["gelu"], nn.Sequential(ACT2FN["silu"]))
    values = torch.linspace(-6, 6, 101).bfloat16()
    wanted = model[0](values)
    activate_in_place(model)
    with torch.inference_mode():
        found = model[0](values)
    assert found.data_ptr() == values.data_ptr()
    assert torch.equal(found, wanted)
    assert type(model.get_submodule("1.0")) is type(ACT2FN["silu"])
