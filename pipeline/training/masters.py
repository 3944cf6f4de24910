"""AdamW for weights in bfloat16, whose true values are kept in float32 (Micikevicius et al. 2017, "master weights").

The model computes, and sends its gradients, in bfloat16 throughout: nothing is cast on the way. A step adds to the
float32 weights, so that updates too small for bfloat16 are not lost, and rounds them into the model.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.adamw import adamw


def in_bfloat16(module: nn.Module) -> None:
    """Its weights in bfloat16; what is none (the frequencies of rotary positions) stays, as where a model is loaded."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)


AT_ONCE = 1 << 24
"""Numbers whose gradients are cast at once: 64 MB. A GPU is asked for all parameters of a small model in one go, where
each of them would take the processor longer than the GPU."""


def _together(parameters: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    """The parameters in groups of so many numbers, or of one that has more."""
    groups: list[list[torch.Tensor]] = []
    room = 0
    for parameter in parameters:
        if not groups or parameter.numel() > room:
            groups.append([])
            room = AT_ONCE
        groups[-1].append(parameter)
        room -= parameter.numel()
    return groups


class MasterAdamW(torch.optim.Optimizer):
    """Decoupled weight decay (Loshchilov and Hutter 2019) on float32 copies of the parameters."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        """`params`: parameters, or groups of them, as torch's optimizers take them."""
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Add one step's gradients to the float32 weights, and round these into the parameters."""
        assert closure is None, "a step is taken once"
        for group in self.param_groups:
            for parameters in _together([each for each in group["params"] if each.grad is not None]):
                for parameter in parameters:
                    if not self.state[parameter]:
                        self._begin(parameter)
                states = [self.state[parameter] for parameter in parameters]
                masters = [state["master"] for state in states]
                adamw(
                    masters,
                    [parameter.grad.float() for parameter in parameters if parameter.grad is not None],
                    [state["exp_avg"] for state in states],
                    [state["exp_avg_sq"] for state in states],
                    [],
                    [state["step"] for state in states],
                    fused=True,
                    amsgrad=False,
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    lr=group["lr"],
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                    maximize=False,
                )
                torch._foreach_copy_(parameters, masters)

    def _begin(self, parameter: torch.Tensor) -> None:
        master = parameter.detach().float().clone()
        self.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "master": master,
            "exp_avg": torch.zeros_like(master),
            "exp_avg_sq": torch.zeros_like(master),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave; torch's own would round all of it to the parameters' format."""
        super().load_state_dict(state_dict)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, state in state_dict["state"].items():
            parameter = parameters[number]
            self.state[parameter] = {
                key: value.to(device=parameter.device, dtype=torch.float32, copy=True) for key, value in state.items()
            }
