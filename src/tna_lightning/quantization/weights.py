"""Which weights a network has, under which names: layers that can be quantised, all others, and what computes them.

A name here is that of the plain network: what ``torch.compile`` wraps keeps the name that it had before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from tna_lightning.models.neurons import SpikingNeuron
from tna_lightning.quantization.inputs import RefusesRaw

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm, nn.CrossMapLRN2d)
WRAPPER = "_orig_mod."  # how torch.compile calls the network inside


def plain_name(name: str) -> str:
    """The name without what ``torch.compile`` adds to it."""
    return f"{name}.".replace(WRAPPER, "").removesuffix(".")


def modules_of(network: nn.Module) -> dict[str, nn.Module]:
    """All modules by name, each once; of one that is wrapped, the one inside."""
    return {plain_name(name): module for name, module in network.named_modules()}


def aliases_of(network: nn.Module) -> dict[int, list[str]]:
    """All names of each module, by its id: one that stands at several places has several."""
    aliases: dict[int, list[str]] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        aliases.setdefault(id(module), []).append(plain_name(name))
    return aliases


def own_tensors(module: nn.Module, with_buffers: bool = True) -> dict[str, Tensor]:
    """A module's own parameters by name, and buffers, without those of the modules in it."""
    found: dict[str, Tensor] = dict(module.named_parameters(recurse=False, remove_duplicate=False))
    return found | (dict(module.named_buffers(recurse=False, remove_duplicate=False)) if with_buffers else {})


@dataclass(frozen=True)
class Computed:
    """A tensor of a module that is no parameter, since parametrisations or torch's older hooks compute it.

    Attributes:
        parts: names within the module of the parameters and buffers that it is computed from.
        value: gives it as in eval mode, and changes nothing.
        words: what computes it, for a sentence.
        removal: the call that makes it a parameter again, of a ``layer``.
    """

    parts: tuple[str, ...]
    value: Callable[[], Tensor]
    words: str
    removal: str


def computed_tensors(module: nn.Module) -> dict[str, Computed]:
    """What of a module's own tensors is computed, by name."""
    found = {}
    if parametrize.is_parametrized(module):
        for name, parametrizations in cast(Any, module).parametrizations.items():
            parts = [part for part, _ in (*parametrizations.named_parameters(), *parametrizations.named_buffers())]
            found[name] = Computed(
                tuple(f"parametrizations.{name}.{part}" for part in parts),
                partial(_in_eval_mode, parametrizations),
                "parametrized already, as by weight norm",
                f"torch.nn.utils.parametrize.remove_parametrizations(layer, {name!r})",
            )
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            found[hook.name] = Computed(
                (f"{hook.name}_g", f"{hook.name}_v"),
                partial(hook.compute_weight, module),
                "computed by torch.nn.utils.weight_norm",
                f"torch.nn.utils.remove_weight_norm(layer, {hook.name!r})",
            )
        elif isinstance(hook, SpectralNorm):
            found[hook.name] = Computed(
                tuple(f"{hook.name}_{part}" for part in ("orig", "u", "v")),
                partial(hook.compute_weight, module, do_power_iteration=False),
                "computed by torch.nn.utils.spectral_norm",
                f"torch.nn.utils.remove_spectral_norm(layer, {hook.name!r})",
            )
        elif isinstance(hook, prune.BasePruningMethod):
            name = cast(Any, hook)._tensor_name
            found[name] = Computed(
                (f"{name}_orig", f"{name}_mask"),
                partial(cast(Any, hook).apply_mask, module),
                "pruned by torch.nn.utils.prune",
                f"torch.nn.utils.prune.remove(layer, {name!r})",
            )
    return found


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks of others see what goes into a module or comes out, and may make it something else."""
    before = module._forward_pre_hooks.values()
    return bool(module._forward_hooks) or not all(
        isinstance(hook, WeightNorm | SpectralNorm | prune.BasePruningMethod | RefusesRaw) for hook in before
    )


def _in_eval_mode(parametrizations: nn.Module) -> Tensor:
    """What they compute in eval mode, since in training mode some, as spectral norm, change by it."""
    were_training = [(module, module.training) for module in parametrizations.modules()]
    parametrizations.eval()
    value: Tensor = parametrizations()
    for module, was_training in were_training:
        module.training = was_training
    return value


def other_weights(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and value of every parameter of two dimensions and more that is no layer's weight, in order.

    Such as the projection of ``nn.MultiheadAttention``, an embedding, the weights of a recurrent layer, a transposed
    convolution. Those of norms and neurons are none. One that is called ``weight`` has the name of its module; one that
    is computed, such as a pruned one, is what is computed.
    """
    within: tuple[str, ...] = ()
    for name, module in modules_of(network).items():
        if isinstance(module, (SpikingNeuron, parametrize.ParametrizationList, *NORMS)):
            within += (f"{name}." if name else "",)
        elif not name.startswith(within):
            computed = computed_tensors(module)
            parts = {part for tensor in computed.values() for part in tensor.parts}
            own = {part: parameter for part, parameter in own_tensors(module, False).items() if part not in parts}
            for part, tensor in (own | {part: tensor.value() for part, tensor in computed.items()}).items():
                is_a_layers = part == "weight" and isinstance(module, WEIGHTED)
                if not is_lazy(tensor) and tensor.ndim >= 2 and not is_a_layers:
                    yield weight_of(name, part), tensor.detach()


def weight_of(module: str, tensor: str) -> str:
    """The name of a module's tensor in a weight report: that of the module where the tensor is called ``weight``."""
    return module if tensor == "weight" else f"{module}.{tensor}".lstrip(".")


def parameter_layers(network: nn.Module) -> dict[str, str]:
    """The name in a weight report of every parameter and buffer, by its own: that of what is computed from it."""
    found: dict[str, str] = {}
    for path, module in network.named_modules(remove_duplicate=False):
        for tensor, computed in computed_tensors(module).items():
            for part in computed.parts:
                found.setdefault(f"{path}.{part}".lstrip("."), weight_of(plain_name(path), tensor))
        for tensor in own_tensors(module):
            found.setdefault(f"{path}.{tensor}".lstrip("."), weight_of(plain_name(path), tensor))
    return found
