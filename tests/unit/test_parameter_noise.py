"""NoiseGrad and FusionGrad: models drawn by hand, limits, seats and neurons, and parameters that nobody touches."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import axplain
from axplain import ArgumentError
from axplain.errors import UncoveredOperation
from axplain.randomness import Key

MODES = ("noisegrad", "fusiongrad")
SILENT: dict[str, dict[str, Any]] = {"noisegrad": {"stdev": 0.0}, "fusiongrad": {"stdev": 0.0, "parameter_stdev": 0.0}}


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = seeded(3, 1, 6, 6)
TARGET = torch.tensor([0, 2, 1])


class Network(nn.Module):
    """A convolution, batch normalisation with statistics, and two layers that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)
        self.mid, self.twin, self.head = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 3)
        self.twin.weight = self.mid.weight
        for i, parameter in enumerate(self.parameters()):
            parameter.data = 0.3 * seeded(*parameter.shape, seed=i)
        self.double().eval()

    def forward(self, x: Tensor, factor: Tensor | float = 1.0) -> Tensor:
        x = torch.tanh(self.norm(self.conv(x))).flatten(1)
        out: Tensor = self.head(torch.tanh(self.twin(torch.tanh(self.mid(x)))))
        return out * (factor[:, None] if isinstance(factor, Tensor) else factor)


MODEL = Network()


def noisy(sample: int, stdev: float, mode: str = "noisegrad", seed: int = 0) -> Network:
    """A copy with the parameters that one sample has."""
    model = copy.deepcopy(MODEL)
    for place, parameter in enumerate(model.parameters()):
        noise = Key(seed, (mode, "parameters", place, sample)).normal(parameter.detach().unsqueeze(0))
        parameter.data = parameter.data * (1 + stdev * noise)
    assert model.twin.weight is model.mid.weight
    return model


def explained(model: Any = MODEL, method: str = "noisegrad", x: Any = X, **given: Any) -> Tensor:
    found: Tensor = axplain.explain(model, x, method, **({"target": TARGET} | given)).attributions
    return found


@pytest.mark.parametrize("inner", ["saliency", "integrated_gradients", "deeplift", "feature_ablation"])
@pytest.mark.parametrize("batch_size", [1, 2, "auto"])
def test_noisegrad_is_the_mean_over_models(inner: str, batch_size: Any) -> None:
    method = {"use": inner, **({"n_steps": 4} if inner == "integrated_gradients" else {})}
    more = {"n_steps": 4} if inner == "integrated_gradients" else {}
    each = [explained(noisy(s, 0.3), inner, verify=False, **more) for s in range(3)]
    found = explained(inner=method, n_samples=3, stdev=0.3, batch_size=batch_size, verify=False)
    torch.testing.assert_close(found, torch.stack(each).mean(0), rtol=1e-9, atol=1e-12)


def test_a_mode_around_a_method_is_the_method_inside_the_mode() -> None:
    around = explained(method="saliency", noise={"mode": "noisegrad", "n_samples": 2})
    assert torch.equal(around, explained(n_samples=2))


def test_fusiongrad_puts_noise_on_the_input_of_each_model() -> None:
    found = axplain.explain(
        MODEL, X, "fusiongrad", target=TARGET, n_models=2, n_samples=3, stdev=0.4, parameter_stdev=0.3
    )
    each = []
    for model in range(2):
        network, key = noisy(model, 0.3, "fusiongrad"), Key(0, ("fusiongrad", "sample", model, "smoothgrad"))
        for sample in range(3):
            copies = X + 0.4 * key.at("noise", 0, sample).normal(X)
            each.append(explained(network, "saliency", copies))
    torch.testing.assert_close(found.attributions, torch.stack(each).mean(0), rtol=1e-9, atol=1e-12)
    spread = torch.stack([torch.stack(each[:3]).mean(0), torch.stack(each[3:]).mean(0)])
    torch.testing.assert_close(found.standard_errors, spread.std(0) / 2**0.5, rtol=1e-9, atol=1e-12)
    assert found.cost.forward_rows == found.cost.backward_rows == 3 * 2 * 3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("inner", ["saliency", "integrated_gradients", "occlusion"])
def test_without_noise_it_is_the_inner_method_bit_for_bit(mode: str, inner: str) -> None:
    more = {"window": (1, 2, 2)} if inner == "occlusion" else {}
    chunk = {"batch_size": 3}  # sums of more rows round otherwise
    found = explained(method=mode, inner={"use": inner, **more}, **SILENT[mode], **chunk)
    assert torch.equal(found, explained(method=inner, **more, **chunk))


@pytest.mark.parametrize("mode", MODES)
def test_parameters_buffers_and_hooks_are_those_of_the_user(mode: str) -> None:
    model = copy.deepcopy(MODEL)
    seen: list[Tensor] = []
    model.head.register_forward_hook(lambda module, args, output: seen.append(output))
    before = {name: (t, t.clone(), t._version) for name, t in model.state_dict(keep_vars=True).items()}
    state = torch.get_rng_state()
    explained(model, mode)
    assert seen, "the user's hooks run in every noisy model"
    assert torch.equal(state, torch.get_rng_state())
    for name, tensor in model.state_dict(keep_vars=True).items():
        old, values, version = before[name]
        assert tensor is old and torch.equal(tensor, values) and tensor._version == version and tensor.grad is None
    assert model.twin.weight is model.mid.weight


class Failing(Network):
    def forward(self, x: Tensor, factor: Tensor | float = 1.0) -> Tensor:
        if self.mid.weight is not self.kept[0]:
            raise RuntimeError("noise")
        return super().forward(x, factor)

    def __init__(self) -> None:
        super().__init__()
        self.kept = [self.mid.weight]


def test_a_failing_pass_puts_the_parameters_back() -> None:
    model = Failing()
    with pytest.raises(RuntimeError, match="noise"):
        explained(model)
    assert model.mid.weight is model.kept[0] and model.twin.weight is model.kept[0]


@pytest.mark.parametrize("inner", ["saliency", "input_x_gradient", "integrated_gradients", "layer_activation"])
def test_at_a_layer(inner: str) -> None:
    """What runs before the layer is noisy too, and is no memory of the model without noise."""
    given: dict[str, Any] = {"layer": "mid", "verify": False}
    given |= {"target": None} if inner == "layer_activation" else {}
    each = [explained(noisy(s, 0.3), inner, **given) for s in range(3)]
    found = explained(inner=inner, n_samples=3, stdev=0.3, **given)
    torch.testing.assert_close(found, torch.stack(each).mean(0), rtol=1e-9, atol=1e-12)


def test_neurons_arguments_and_keyword_inputs() -> None:
    unit = axplain.neuron("mid", 4)
    each = [explained(noisy(s, 0.2), "saliency", target=unit) for s in range(10)]
    torch.testing.assert_close(explained(target=unit), torch.stack(each).mean(0), rtol=1e-9, atol=1e-12)
    factor = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    scaled = factor.view(-1, 1, 1, 1) * explained()
    torch.testing.assert_close(explained(additional_forward_args=factor), scaled)
    torch.testing.assert_close(explained(forward_kwargs={"factor": factor}), scaled)
    named = axplain.explain(MODEL, {"x": X}, "noisegrad", target=TARGET).attributions["x"]
    assert torch.equal(named, explained())


def test_the_predicted_class_is_that_of_the_model_itself() -> None:
    with torch.no_grad():
        predicted = MODEL(X).argmax(1)
    found = axplain.explain(MODEL, X, "noisegrad", stdev=2.0)
    assert found.target == predicted.tolist() or list(found.target) == predicted.tolist()
    torch.testing.assert_close(found.attributions, explained(target=predicted, stdev=2.0))


def test_a_wrapper_of_the_model_gets_the_same_noise() -> None:
    assert torch.equal(explained(axplain.evaluating(MODEL)), explained())


def test_completeness_is_that_of_the_noisy_models() -> None:
    found = axplain.explain(MODEL, X, "integrated_gradients", target=TARGET, noise={"mode": "noisegrad"})
    assert found.delta is not None and float(found.delta.abs().max()) < 1e-8


def test_seeds_decide_and_more_models_agree_better() -> None:
    assert torch.equal(explained(seed=3), explained(seed=3))
    assert not torch.equal(explained(seed=3), explained(seed=4))
    spreads = [torch.stack([explained(seed=s, n_samples=n) for s in range(12)]).var(0).sum() for n in (4, 64)]
    assert 0.02 < float(spreads[1] / spreads[0]) < 0.2  # 1/16 is expected


@pytest.mark.parametrize("mode", MODES)
def test_models_whose_parameters_cannot_be_exchanged_are_refused(mode: str) -> None:
    with pytest.raises(ArgumentError, match=f"model: a plain callable .* a torch.nn.Module: {mode} exchanges"):
        explained(lambda x: MODEL(x), mode)
    with pytest.raises(ArgumentError, match="model: a Tanh without parameters came"):
        axplain.explain(nn.Tanh(), X, mode, target=(0, 0, 0))
    with pytest.raises(UncoveredOperation, match=r"scripted.*parameters are exchanged"):
        explained(torch.jit.trace(MODEL, X), mode)  # type: ignore[no-untyped-call]


def test_a_module_that_another_call_explains_is_not_exchanged_under_it() -> None:
    """Concurrent calls would see noise that is not theirs."""

    class Nested(Network):
        def forward(self, x: Tensor, factor: Tensor | float = 1.0) -> Tensor:
            if torch.is_grad_enabled():
                import threading

                found: list[BaseException] = []

                def other() -> None:
                    try:
                        axplain.explain(self, X, "occlusion", target=0, window=(1, 3, 3))
                    except BaseException as error:
                        found.append(error)

                thread = threading.Thread(target=other)
                thread.start()
                thread.join()
                errors.extend(found)
            return super().forward(x, factor)

    errors: list[BaseException] = []
    explained(Nested(), n_samples=1)
    assert errors and all(isinstance(error, axplain.UnsupportedModel) for error in errors)
