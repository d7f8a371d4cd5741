"""By kind: every module of torch.nn with weights is quantised, counted, packed and loaded right, or refused by name."""

import copy
import inspect
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import tna_lightning.models
import tna_lightning.quantization
from tna_lightning.cost import inference_cost
from tna_lightning.models import LIF
from tna_lightning.quantization import (
    Codes,
    Quantizer,
    Ternary,
    TernaryTTQ,
    Uniform,
    dequantize_network,
    load_packed,
    quantize_network,
    save_network,
    weight_report,
)
from tna_lightning.quantization.folding import fold_batch_norm, without_quantizers
from tna_lightning.quantization.weights import NORMS

F, N, B = 8, 5, 3


def image(dimensions):
    return torch.randn(B, 4, *(6,) * dimensions)


def first(output):
    while isinstance(output, tuple):
        output = output[0]
    return output


# what makes the module, an input, and how it is called where that is not module(x)
KINDS = {
    "Linear": (lambda: nn.Linear(F, F), torch.randn(B, F), None),
    "Bilinear": (lambda: nn.Bilinear(F, F, F), torch.randn(B, F), lambda module, x: module(x, x)),
    **{f"Conv{d}d": (lambda d=d: getattr(nn, f"Conv{d}d")(4, 4, 3, groups=2), image(d), None) for d in (1, 2, 3)},
    **{
        f"ConvTranspose{d}d": (lambda d=d: getattr(nn, f"ConvTranspose{d}d")(4, 6, 3), image(d), None)
        for d in (1, 2, 3)
    },
    "Embedding": (lambda: nn.Embedding(9, F), torch.randint(9, (B, N)), None),
    "EmbeddingBag": (lambda: nn.EmbeddingBag(9, F), torch.randint(9, (B, N)), None),
    **{
        name: (lambda name=name: getattr(nn, name)(F, F, batch_first=True), torch.randn(B, N, F), None)
        for name in ("RNN", "GRU", "LSTM")
    },
    **{
        f"{name}Cell": (lambda name=name: getattr(nn, f"{name}Cell")(F, F), torch.randn(B, F), None)
        for name in ("RNN", "GRU", "LSTM")
    },
    "MultiheadAttention": (
        lambda: nn.MultiheadAttention(F, 2, batch_first=True),
        torch.randn(B, N, F),
        lambda module, x: module(x, x, x, need_weights=False),
    ),
    "TransformerEncoderLayer": (
        lambda: nn.TransformerEncoderLayer(F, 2, 16, batch_first=True),
        torch.randn(B, N, F),
        None,
    ),
    "TransformerEncoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(F, 2, 16, batch_first=True), 1),
        torch.randn(B, N, F),
        None,
    ),
    "TransformerDecoderLayer": (
        lambda: nn.TransformerDecoderLayer(F, 2, 16, batch_first=True),
        torch.randn(B, N, F),
        lambda module, x: module(x, x),
    ),
    "TransformerDecoder": (
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(F, 2, 16, batch_first=True), 1),
        torch.randn(B, N, F),
        lambda module, x: module(x, x),
    ),
    "Transformer": (
        lambda: nn.Transformer(F, 2, 1, 1, 16, batch_first=True),
        torch.randn(B, N, F),
        lambda module, x: module(x, x),
    ),
    "AdaptiveLogSoftmaxWithLoss": (
        lambda: nn.AdaptiveLogSoftmaxWithLoss(F, 12, [4, 8], div_value=2),
        torch.randn(B, F),
        lambda module, x: module.log_prob(x),
    ),
    "ParameterList": (
        lambda: nn.ParameterList([nn.Parameter(torch.randn(F, F))]),
        torch.randn(B, F),
        lambda module, x: x @ module[0],
    ),
    "ParameterDict": (
        lambda: nn.ParameterDict({"a": nn.Parameter(torch.randn(F, F))}),
        torch.randn(B, F),
        lambda module, x: x @ module["a"],
    ),
}
LAZY = {
    "LazyLinear": (lambda: nn.LazyLinear(F), torch.randn(B, F)),
    **{f"LazyConv{d}d": (lambda d=d: getattr(nn, f"LazyConv{d}d")(4, 3), image(d)) for d in (1, 2, 3)},
    **{
        f"LazyConvTranspose{d}d": (lambda d=d: getattr(nn, f"LazyConvTranspose{d}d")(4, 3), image(d)) for d in (1, 2, 3)
    },
}
# their gains and shifts are no weights of layers; slopes of activations are no weights either
WITHOUT = {"PReLU", *(kind.__name__ for kind in NORMS)}


class Net(nn.Module):
    """A module, and a linear layer behind it."""

    def __init__(self, make, x, call=None):
        super().__init__()
        self.module, self.does = make(), call or (lambda module, x: module(x))
        self.module.eval()
        with torch.no_grad():
            features = self.before(x)
        self.module.train()
        self.last = nn.Linear(features.shape[1], 2)

    def before(self, x):
        return first(self.does(self.module, x)).flatten(1)

    def forward(self, x):
        return self.last(self.before(x))


def test_no_module_of_torch_with_weights_is_left_out():
    of_torch = {
        name: kind
        for name in dir(nn)
        if inspect.isclass(kind := getattr(nn, name)) and issubclass(kind, nn.Module) and kind is not nn.Module
    }
    with_parameters = {
        name
        for name, kind in of_torch.items()
        for each in kind.__mro__[: kind.__mro__.index(nn.Module)]
        for function in vars(each).values()
        if inspect.isfunction(function) and {"Parameter", "UninitializedParameter"} & {*function.__code__.co_names}
    }
    assert len(with_parameters) > 40
    made_of_others = {"Container", "Sequential", "ModuleList", "ModuleDict", "RNNBase", "RNNCellBase"}
    norms = {name for name, kind in of_torch.items() if issubclass(kind, NORMS)}
    assert with_parameters - KINDS.keys() - LAZY.keys() - norms - WITHOUT - made_of_others == set()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_module_with_weights_is_quantised_counted_packed_and_loaded_right(kind, tmp_path):
    torch.manual_seed(0)
    make, x, call = KINDS[kind]
    network, other = Net(make, x, call), Net(make, x, call)
    before = copy.deepcopy(network.state_dict())
    all_weights = sum(
        parameter.numel()
        for module in network.modules()
        if not isinstance(module, NORMS)
        for parameter in module.parameters(recurse=False)
        if parameter.ndim >= 2
    )
    quantize_network(network, Ternary())
    network(x).sum().backward()
    report = weight_report(network.eval())
    # all weights are in the report, and what it calls quantised has three values a channel
    assert report["weights"] == all_weights
    modules = dict(network.named_modules())
    for layer in report["layers"]:
        if layer["is_quantized"]:
            assert all(len(row.unique()) <= 3 for row in modules[layer["name"]].weight.flatten(1))
    left_out = {layer["name"] for layer in report["layers"] if not layer["is_quantized"]}
    quantised = [name for name, module in modules.items() if hasattr(module, "parametrizations")]
    assert left_out.isdisjoint(quantised)
    assert report["quantized_share"] < 1 or not left_out

    # every weight that is used is counted, or named; looking up an embedding multiplies nothing
    cost = inference_cost(network, [x])
    named = {entry["name"] for entry in cost["not_counted"]}
    for layer in cost["layers"]:
        module = layer["name"].rpartition(".")[0] if layer["name"] not in modules else layer["name"]
        assert layer["dense_macs"] > 0 or module in named or "Embedding" in kind, layer["name"]

    with torch.no_grad():
        logits = network(x)
    save_network(tmp_path / "packed", network)
    kept = load_packed(tmp_path / "packed", network=other)
    with torch.no_grad():
        assert torch.equal(kept(x), logits)
        assert torch.equal(copy.deepcopy(network)(x), logits)
        assert torch.equal(without_quantizers(network)(x), logits)
    assert weight_report(kept) == report

    quantize_network(network, Ternary())  # as a second fit does
    with torch.no_grad():
        assert torch.equal(network(x), logits)
    dequantize_network(network)
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [type(module) for module in network.modules()] == [type(module) for module in other.modules()]


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
@pytest.mark.parametrize("kind", sorted(LAZY))
def test_weights_that_do_not_exist_yet_are_refused_by_name(kind, tmp_path):
    make, x = LAZY[kind]
    network = nn.Sequential(make(), nn.Flatten(), nn.LazyLinear(2))
    names = "2" if "Transpose" in kind else "0, 2"
    message = rf"the weights of {names} do not exist yet, being lazy; call the network on an input once$"
    with pytest.raises(ValueError, match=f"^network: {message}"):
        quantize_network(network, Ternary())
    with pytest.raises(ValueError, match=r"^network: the weights of 0, 2 do not exist yet"):
        save_network(tmp_path / "packed", network)
    network(x)
    quantize_network(network, Ternary())
    save_network(tmp_path / "packed", network.eval())
    assert torch.equal(
        load_packed(tmp_path / "packed", nn.Sequential(make(), nn.Flatten(), nn.LazyLinear(2)))(x), network(x)
    )


# ---- weights that others compute -------------------------------------------------------------------------------------

COMPUTED = {
    "weight norm": (parametrizations.weight_norm, "remove_parametrizations"),
    "spectral norm": (parametrizations.spectral_norm, "remove_parametrizations"),
    "orthogonal": (parametrizations.orthogonal, "remove_parametrizations"),
    "older weight norm": (lambda layer: nn.utils.weight_norm(layer), "remove_weight_norm"),
    "older spectral norm": (lambda layer: nn.utils.spectral_norm(layer), "remove_spectral_norm"),
    "pruned": (lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5), "prune.remove"),
    "pruned twice": (
        lambda layer: prune.random_unstructured(prune.l1_unstructured(layer, "weight", amount=0.3), "weight", 0.3),
        "prune.remove",
    ),
}


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm:FutureWarning")
@pytest.mark.parametrize("kind", COMPUTED)
def test_weights_that_others_compute_are_kept_right_and_refused_by_name_where_they_are_to_be_quantised(kind, tmp_path):
    computes, removal = COMPUTED[kind]

    def make(seed):
        torch.manual_seed(seed)
        return nn.Sequential(computes(nn.Linear(F, F, bias=False)), nn.BatchNorm1d(F), nn.Linear(F, 2))

    network, x = make(0), torch.randn(B, F)
    with pytest.raises(ValueError, match=rf"^network: the weights of 0 are .*{removal}\(layer, .*skip=\[0\]$"):
        quantize_network(network, Ternary())
    for quantised in (False, True):
        if quantised:
            quantize_network(network, Ternary(), skip=["0"])
        network.train()(x)
        network.eval()
        with torch.no_grad():
            logits = network(x)
        save_network(tmp_path / "packed", network)
        with torch.no_grad():
            assert torch.equal(load_packed(tmp_path / "packed", make(1))(x), logits)
        report, cost = weight_report(network), inference_cost(network, [x])
        # the weight that is computed, once, under its layer's name; its operations too
        assert [(layer["name"], layer["weights"]) for layer in report["layers"]] == [("0", F * F), ("2", 2 * F)]
        assert [layer["dense_macs"] for layer in cost["layers"]] == [F * F, 2 * F]
        assert (cost["products"], cost["not_counted"]) == ([], [])
        assert report["layers"][0]["zeros"] == int((network[0].weight == 0).sum())
    with pytest.raises(ValueError, match=r"^network: cannot fold 1: the layer before it is"):
        fold_batch_norm(network)


class Twice(nn.Module):
    """A parametrisation."""

    def forward(self, tensor):
        return 2 * tensor


def test_a_quantised_weight_is_not_parametrised_once_more():
    network = nn.Sequential(nn.Linear(F, F))
    quantize_network(network, Ternary())
    nn.utils.parametrize.register_parametrization(network[0], "weight", Twice())
    for use in (weight_report, dequantize_network, lambda network: quantize_network(network, Ternary())):
        with pytest.raises(ValueError, match=r"^network: the weight of 0 was parametrized after it was quantised"):
            use(network)


def test_other_parametrisations_stay_where_a_quantiser_goes(tmp_path):
    def make():
        network = nn.Sequential(nn.Linear(F, 4))
        nn.utils.parametrize.register_parametrization(network[0], "bias", Twice())
        return network

    network, x = make(), torch.randn(B, F)
    plain = network(x)
    quantize_network(network, Ternary())
    copied = copy.deepcopy(network)
    logits = network.eval()(x)
    save_network(tmp_path / "packed", network)
    assert torch.equal(load_packed(tmp_path / "packed", make())(x), logits)
    assert torch.equal(without_quantizers(network)(x), logits)
    dequantize_network(network)
    assert torch.equal(network(x), plain)
    assert torch.equal(copied.eval()(x), logits)  # the class that it shared is as it was


# ---- names and ties --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["reparametrizations", "parametrizations_", "base", "companion", "weight", "kept", "quantizer", "original", "codes",
     "scale", "cutoff", "spec", "layers", "_orig"],
)  # fmt: skip
def test_a_submodule_may_be_called_anything(name, tmp_path):
    def make():
        network = nn.Module()
        network.add_module(name, nn.Sequential(nn.Linear(F, F), nn.Linear(F, 4)))
        network.forward = lambda x: getattr(network, name)(x)
        return network

    network, x = make(), torch.randn(B, F)
    for quantised in (False, True):
        if quantised:
            quantize_network(network, Ternary(), skip=[f"{name}.1"])
        save_network(tmp_path / "packed", network.eval())
        assert torch.equal(load_packed(tmp_path / "packed", make()).forward(x), network.forward(x))
        assert [layer["name"] for layer in weight_report(network)["layers"]] == [f"{name}.0", f"{name}.1"]


class Tied(nn.Module):
    """Two layers with one weight, an embedding with another's, and a layer at two places."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(F, F), nn.Linear(F, F)
        self.b.weight = self.a.weight
        self.twice = nn.Linear(F, F)
        self.again = self.twice
        self.words, self.last = nn.Embedding(9, F), nn.Linear(F, 9)
        self.last.weight = self.words.weight

    def forward(self, x):
        return self.last(self.again(self.twice(self.b(self.a(x)))) + self.words(torch.arange(len(x))))


@pytest.mark.parametrize("quantizer", [Ternary(), TernaryTTQ(), Uniform(2, scale="learned")], ids=lambda q: q.name)
def test_tied_weights_come_back_as_they_were(quantizer, tmp_path):
    network, x = Tied(), torch.randn(B, F)
    quantize_network(network, quantizer, skip=["last"])
    for parameter in network.parameters():  # a training that moves learned scales
        parameter.data += 0.01 * torch.randn_like(parameter)
    logits = network.eval()(x)
    save_network(tmp_path / "packed", network)
    other = load_packed(tmp_path / "packed", Tied())
    assert torch.equal(other(x), logits)
    assert other.a.weight is other.b.weight
    assert [layer["is_quantized"] for layer in weight_report(other)["layers"]] == [True, True, False]
    names = [layer["name"] for layer in weight_report(network)["layers"]]
    assert names == [layer["name"] for layer in weight_report(other)["layers"]] == ["a", "twice", "words"]
    assert network.a.parametrizations.weight[0] is network.b.parametrizations.weight[0]
    dequantize_network(network)
    assert network.a.weight is network.b.weight


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"skip": ["last", "b"]}, "a, b"),
        ({"skip": ["last", "a"]}, "a, b"),
        ({"skip": ["last"], "layer_quantizers": {"b": Uniform(8)}}, "a, b"),
        ({}, "words, last"),
    ],
)
def test_one_weight_has_one_scheme(settings, names):
    with pytest.raises(ValueError, match=rf"^network: {names} have one weight in common"):
        quantize_network(Tied(), Ternary(), **settings)


def test_a_file_of_two_weights_is_not_loaded_into_one(tmp_path):
    network, x = nn.Sequential(nn.Linear(F, F), nn.Linear(F, F)), torch.randn(B, F)
    save_network(tmp_path / "packed", network)
    tied = nn.Sequential(nn.Linear(F, F), nn.Linear(F, F))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match=r"fits another network \(0.weight is tied to another weight in this one\)"):
        load_packed(tmp_path / "packed", tied)
    assert torch.equal(load_packed(tmp_path / "packed", copy.deepcopy(network))(x), network(x))


def test_a_layer_is_known_by_each_of_its_names():
    network = Tied()
    quantize_network(network, Ternary(), skip=["again", "last", "words"])
    assert [layer["is_quantized"] for layer in weight_report(network)["layers"]] == [True, False, False]


def test_what_is_never_quantised_may_be_skipped_and_has_no_scheme_of_its_own():
    network = nn.ModuleDict({"up": nn.ConvTranspose2d(4, 2, 3), "last": nn.Linear(F, 2)})
    quantize_network(network, Ternary(), skip=["up"])
    assert [layer["is_quantized"] for layer in weight_report(network)["layers"]] == [False, True]
    with pytest.raises(ValueError, match=r"^layer_quantizers=\['up'\]: up holds no layer that can be quantised"):
        quantize_network(network, Ternary(), layer_quantizers={"up": Uniform(8)})


# ---- torch.compile ---------------------------------------------------------------------------------------------------


class Spiking(nn.Module):
    """Linear layer with batch norm, two steps of neurons, classifier."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(F, F), nn.BatchNorm1d(F))
        self.neuron, self.last = LIF(threshold=0.1), nn.Linear(F, 2)

    def forward(self, x):
        return self.last(self.neuron(self.stem(x)[None].expand(2, -1, -1)))


# torch's own compiler, in some versions
@pytest.mark.filterwarnings("ignore:.*torch.autograd.function.Function.* should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("inner", [False, True])
def test_a_network_that_is_wrapped_by_torch_compile_has_its_plain_names(inner, tmp_path):
    def make(wrap=False):
        network = Spiking()
        if wrap and inner:
            network.stem = torch.compile(network.stem, backend="eager")
        return torch.compile(network, backend="eager") if wrap and not inner else network

    torch.manual_seed(0)
    network, x = make(wrap=True), torch.randn(B, F)
    quantize_network(network, Ternary(), skip=["last"])
    network(x)
    network.eval()
    with torch.no_grad():
        logits = network(x)
        plain = network if inner else network._orig_mod
    report = weight_report(network)
    assert [(layer["name"], layer["is_quantized"]) for layer in report["layers"]] == [("stem.0", True), ("last", False)]
    cost = inference_cost(network, [x])
    assert [(layer["name"], layer["dense_macs"]) for layer in cost["layers"]] == [
        ("stem.0", F * F),
        ("last", 2 * 2 * F),
    ]
    assert [layer["name"] for layer in cost["neuron_layers"]] == ["neuron"]
    save_network(tmp_path / "packed", network)
    with torch.no_grad():
        for other in (make(), make(wrap=True)):
            assert torch.equal(load_packed(tmp_path / "packed", other)(x), logits)
        folded = fold_batch_norm(network)
        assert not any(isinstance(module, nn.BatchNorm1d) for module in folded.modules())
        torch.testing.assert_close(folded(x), logits)
    dequantize_network(network)
    assert type(plain.last) is nn.Linear


# ---- public classes --------------------------------------------------------------------------------------------------

OVER_TIME = {"IPSU", "MaskedPSN", "PSN", "QuantReLU", "RPSU", "TemporalTernary"}
BLOCKS = {"BasicBlock", "MSBlock", "MaxBlock", "SEWBlock"}
WITH_ARGUMENTS = BLOCKS | {"Codes", "Network", "PerStep", "Quantizer", "Stepwise", "Uniform", "WeightQuantization"}


def public_objects():
    """One object of each public class of quantization and models, and networks of the backbones."""
    found = {}
    for package in (tna_lightning.quantization, tna_lightning.models):
        for name in package.__all__:
            kind = getattr(package, name)
            if inspect.isclass(kind) and name not in WITH_ARGUMENTS:
                found[name] = kind(time_steps=3) if name in OVER_TIME else kind()
    for name in ("convnet", "resnet8", "vggsnn"):
        found[name] = getattr(tna_lightning.models, name)(in_channels=2, num_classes=3, neuron=LIF, width=0.04)
    found["Uniform"] = Uniform(4, scale="learned")
    found["Codes"] = Ternary().encode(torch.randn(3, 4))
    found["WeightQuantization"] = tna_lightning.quantization.WeightQuantization(Ternary(), skip=["a"], start_epoch=1)
    found["PerStep"] = tna_lightning.models.PerStep(nn.Conv2d(2, 3, 3))
    found |= {name: getattr(tna_lightning.models, name)(2, 3, 2, LIF) for name in BLOCKS}
    found["Quantizer"] = Quantizer("layer")
    found["Stepwise"] = tna_lightning.models.snntorch_neuron(settings={"beta": 0.5})
    return found


def alike(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, nn.Module):
        assert repr(a) == repr(b)
        a, b = a.state_dict(), b.state_dict()
        return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    if hasattr(a, "__dict__"):
        return vars(a).keys() == vars(b).keys() and all(alike(vars(a)[name], vars(b)[name]) for name in vars(a))
    return a == b or repr(a) == repr(b)


def test_public_classes_survive_copies_and_pickles():
    objects = public_objects()
    public = {
        name
        for package in (tna_lightning.quantization, tna_lightning.models)
        for name in package.__all__
        if inspect.isclass(getattr(package, name))
    }
    assert public - {"Network"} <= objects.keys()  # of which these backbones are some
    for name, each in objects.items():
        for other in (copy.deepcopy(each), pickle.loads(pickle.dumps(each))):
            assert type(other) is type(each)
            assert alike(each, other), name


def test_a_quantised_network_is_copied_and_its_pickle_is_refused_by_torch():
    network, x = nn.Sequential(nn.Linear(F, 2)), torch.randn(B, F)
    quantize_network(network, TernaryTTQ())
    network(x).sum().backward()
    assert torch.equal(copy.deepcopy(network)(x), network(x))
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        pickle.dumps(network)
    save_codes = Codes(torch.ones(2, 2, dtype=torch.int8), None, "mine", 2)
    assert alike(save_codes, pickle.loads(pickle.dumps(save_codes)))


def test_a_network_is_traced_with_the_weights_that_it_computes():
    network, x = nn.Sequential(nn.Linear(F, F), LIF(threshold=0.1), nn.Linear(F, 2)), torch.randn(2, B, F)
    quantize_network(network, Ternary())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, about Python's own branches
        traced = torch.jit.trace(network.eval(), x)
    assert torch.equal(traced(x), network(x))
