"""The names by which a reader knows the choices: CIFAR-10, KD, TNA; a choice of the user's own keeps its own."""

from __future__ import annotations

BASELINES = {
    **{"plain": "plain", "plain_twice": "plain \N{MULTIPLICATION SIGN}2", "kd": "KD", "kd_ann": "KD (ANN)"},
    **{"mutual": "DML", "tna": "TNA", "cohort": "cohort", "tna_ann_twin": "TNA (ANN twin)"},
    **{"tna_detached": "TNA (detached)", "tna_frozen_twin": "TNA (frozen twin)", "tna_late": "TNA (late)"},
    **{"tna_narrow_twin": "TNA (narrow twin)", "tna_per_step": "TNA (per step)", "tna_small_twin": "TNA (small twin)"},
}
MEANINGS = {
    "plain_twice": "plain training for twice the epochs",
    "kd": "distillation from a spiking teacher",
    "kd_ann": "distillation from an ANN teacher",
    "mutual": "mutual learning",
    "tna": "twin network augmentation",
}
_NAMES = {
    "data": {
        **{"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "cifar10dvs": "CIFAR10-DVS", "mnist": "MNIST"},
        **{"cifar10_simdvs": "CIFAR-10 events", "digits_dvs": "digits events", "fashion_mnist": "Fashion-MNIST"},
        **{"kmnist": "KMNIST", "emnist": "EMNIST", "tiny_imagenet": "Tiny ImageNet"},
    },
    "model": {
        **{f"resnet{depth}": f"ResNet-{depth}" for depth in (8, 18, 19, 20)},
        **{"vgg11": "VGG-11", "vgg16": "VGG-16", "vggsnn": "VGGSNN"},
    },
    "neuron": {
        **{name: name.upper() for name in ("alif", "if", "lif", "plif", "psn", "psu", "ipsu", "rpsu")},
        **{"relu": "ReLU", "quant_relu": "quantised ReLU", "masked_psn": "masked PSN", "sliding_psn": "sliding PSN"},
        **{"integer_lif": "integer LIF", "ternary_lif": "ternary LIF"},
    },
    "baseline": BASELINES,
    "precision": {
        **{f"int{bits}": f"{bits} bits" for bits in (2, 3, 4, 8)},
        **{"ternary_hidden": "ternary, hidden", "ternary_ttq": "ternary, TTQ", "ternary_absmean": "ternary, absmean"},
        "tawq": "TAWQ",
    },
}


def counted(number: int, thing: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def named(group: str, choice: str) -> str:
    """A choice by its name, with what stands after it in brackets, as of data that are simulated."""
    word, bracket, rest = choice.partition(" (")
    return _NAMES.get(group, {}).get(word, word) + bracket + rest
