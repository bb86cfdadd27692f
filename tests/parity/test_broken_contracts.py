"""What captum 0.9.0, as released, does to its caller's tensors, generators and arguments; and what axplain does.

Each test asserts the fault first, so that a release that mends it is noticed.
"""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable
from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
from captum.attr import GradientShap, InputXGradient, IntegratedGradients, NoiseTunnel, Saliency
from tests.parity.networks import quietly, seeded, smooth
from tests.parity.oracles import integrated_gradients, rule
from torch import Tensor, nn

import axplain

X = seeded(5, 4)
METHODS = {
    "saliency": Saliency,
    "input_x_gradient": InputXGradient,
    "integrated_gradients": IntegratedGradients,
    "gradient_shap": GradientShap,
}


def _extra(name: str, baselines: Any = X) -> dict[str, Any]:
    return {"baselines": baselines} if name == "gradient_shap" else {}


@pytest.mark.parametrize("name", METHODS)
def test_s1_a_failed_call_leaves_requires_grad_alone(name: str) -> None:
    theirs, ours = X.clone(), X.clone()
    with pytest.raises(IndexError):
        quietly(METHODS[name](smooth()).attribute, theirs, target=99, **_extra(name))
    assert theirs.requires_grad == (name in ("saliency", "input_x_gradient"))
    with pytest.raises(axplain.ArgumentError, match="target"):
        axplain.explain(smooth(), ours, name, target=99, **_extra(name))
    assert not ours.requires_grad
    assert ours.grad is None


@pytest.mark.parametrize("name", METHODS)
def test_s3_results_carry_no_graph(name: str) -> None:
    theirs = quietly(METHODS[name](smooth()).attribute, X.clone(), target=0, **_extra(name))
    if name == "input_x_gradient":
        assert theirs.requires_grad
        with pytest.raises(RuntimeError, match="requires grad"):
            theirs.numpy()
    ours = axplain.explain(smooth(), X, name, target=0, **_extra(name))
    assert ours.attributions.grad_fn is None
    assert ours.attributions.numpy().shape == (5, 4)


def test_s4_no_call_of_captum_takes_a_seed_and_every_call_of_axplain_does() -> None:
    for peer in vars(captum.attr).values():
        if inspect.isclass(peer) and hasattr(peer, "attribute"):
            assert not {"seed", "generator", "random_state"} & inspect.signature(peer.attribute).parameters.keys()
    assert "seed" in inspect.signature(axplain.explain).parameters


def test_s4_global_generators_stay_where_they_are() -> None:
    def states() -> tuple[Any, ...]:
        numpy_state: Any = np.random.get_state()
        return torch.get_rng_state().tolist(), numpy_state[1].tolist(), numpy_state[2], random.getstate()

    model = smooth()  # building it moves torch's generator
    with torch.random.fork_rng():
        before = states()
        quietly(GradientShap(model).attribute, X, X, target=0)
        assert states()[1:3] != before[1:3], "numpy's generator"
        before = states()
        quietly(NoiseTunnel(Saliency(model)).attribute, X, target=0)
        assert states()[0] != before[0], "torch's generator"
        before = states()
        axplain.explain(model, X, "gradient_shap", target=0, baselines=X, stdev=0.1)
        axplain.explain(model, X, "saliency", target=0, noise="smoothgrad")
        axplain.explain(model, X, target=0, baselines="gaussian", seed=None)
        assert states() == before


@pytest.mark.parametrize("name", ["saliency", "gradient_shap"])
def test_s5_noise_fits_a_bfloat16_model(name: str) -> None:
    model, x = smooth().bfloat16(), X.bfloat16()
    with pytest.raises(RuntimeError, match="same dtype"):
        if name == "saliency":
            quietly(NoiseTunnel(Saliency(model)).attribute, x, target=0)
        else:
            quietly(GradientShap(model).attribute, x, x, target=0, stdevs=0.1)
    arguments: dict[str, Any] = {"baselines": x, "stdev": 0.1} if name == "gradient_shap" else {"noise": "smoothgrad"}
    half = axplain.explain(model, x, name, target=0, verify=False, **arguments).attributions
    full = axplain.explain(smooth(), x.double(), name, target=0, verify=False, **_double(arguments)).attributions
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), full, rtol=0.1, atol=0.02 * float(full.abs().max()))


def _double(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value.double() if isinstance(value, Tensor) else value for name, value in arguments.items()}


def test_s5_a_whole_number_is_a_standard_deviation() -> None:
    with pytest.raises(AssertionError, match="float"):
        quietly(NoiseTunnel(Saliency(smooth())).attribute, X, target=0, stdevs=1)
    whole = axplain.explain(smooth(), X, "smoothgrad", target=0, stdev=1).attributions
    assert torch.equal(whole, axplain.explain(smooth(), X, "smoothgrad", target=0, stdev=1.0).attributions)


def test_s5_noise_does_not_depend_on_the_size_of_a_chunk() -> None:
    def theirs(chunk: int) -> Tensor:
        torch.manual_seed(0)
        tunnel = NoiseTunnel(Saliency(smooth()))
        found: Tensor = quietly(tunnel.attribute, X, nt_samples=6, nt_samples_batch_size=chunk, stdevs=0.3, target=0)
        return found

    with torch.random.fork_rng():
        assert float((theirs(1) - theirs(6)).abs().max()) > 0.005
    chunks = [
        axplain.explain(smooth(), X, "smoothgrad", target=0, n_samples=6, stdev=0.3, batch_size=rows).attributions
        for rows in (1, 3, 5, 12, 30)
    ]
    for other in chunks[1:]:
        torch.testing.assert_close(other, chunks[0], rtol=0, atol=1e-15)


def test_s6_training_mode_is_named_and_the_model_is_left_as_it_was() -> None:
    """Captum's integrated gradients move the statistics and mix the examples of the batch, without a word."""
    layers = (nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    model = nn.Sequential(*layers).double()
    for i, parameter in enumerate(model.parameters()):
        parameter.data = 0.7 * seeded(*parameter.shape, seed=90 + i)
    model.train()(seeded(50, 4, seed=1) + 1)
    before = copy.deepcopy(model.state_dict())
    theirs = IntegratedGradients(copy.deepcopy(model))
    together, alone = theirs.attribute(X, target=0), theirs.attribute(X[:1], target=0)
    assert float((together[:1] - alone).abs().max()) > 0.01
    assert not torch.equal(theirs.forward_func.state_dict()["1.running_mean"], before["1.running_mean"])

    with pytest.warns(axplain.AxplainWarning, match=r"training mode, where 1 \(BatchNorm1d\) would mix"):
        axplain.explain(model, X, target=0, verify=False)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    ours = axplain.explain(axplain.evaluating(model), X, target=0, n_steps=32).attributions
    frozen = copy.deepcopy(model).eval()
    exact = integrated_gradients(lambda x: frozen(x)[:, 0], (X,), (torch.zeros_like(X),), rule("gauss_legendre", 32))[0]
    torch.testing.assert_close(ours, exact, rtol=0, atol=1e-13)
    assert model.training


@pytest.mark.parametrize(
    ("target", "same"),
    [
        (np.int64(1), 1),
        ([np.int64(i) for i in (0, 1, 2, 0, 1)], [0, 1, 2, 0, 1]),
        (np.array([0, 1, 2, 0, 1]), [0, 1, 2, 0, 1]),
        (torch.tensor([0, 1, 2, 0, 1])[:, None], [0, 1, 2, 0, 1]),
    ],
    ids=["numpy integer", "list of numpy integers", "array", "column"],
)
def test_s8_integers_of_numpy_and_columns_are_targets(target: Any, same: Any) -> None:
    with pytest.raises(AssertionError, match="not valid"):
        quietly(IntegratedGradients(smooth()).attribute, X, target=target)
    ours = axplain.explain(smooth(), X, target=target, n_steps=32)
    torch.testing.assert_close(
        ours.attributions,
        quietly(IntegratedGradients(smooth()).attribute, X, target=same, n_steps=32),
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize("target", [True, 1.0, "cat", torch.tensor(True), torch.tensor([0.0, 1, 2, 0, 1]), [0, 1]])
def test_s8_what_is_no_target_is_named_as_such(target: Any) -> None:
    with pytest.raises(axplain.ArgumentError, match=r"^target: "):
        axplain.explain(smooth(), X, target=target)


def test_s8_a_baseline_without_a_batch_dimension_is_named_as_such() -> None:
    """In captum it is an assertion about something else, or with one feature vector an IndexError."""
    with pytest.raises(AssertionError, match="Baseline can be provided"):
        quietly(IntegratedGradients(smooth()).attribute, X, torch.zeros(4).double(), target=0)
    with pytest.raises(axplain.ArgumentError, match=r"^baselines: shape \(4,\) came.*unsqueeze"):
        axplain.explain(smooth(), X, target=0, baselines=torch.zeros(4).double())


def test_s8_a_tensor_without_dimensions_is_a_number() -> None:
    with pytest.raises(IndexError):
        quietly(IntegratedGradients(smooth()).attribute, X, torch.tensor(0.5).double(), target=0)
    ours = axplain.explain(smooth(), X, target=0, baselines=torch.tensor(0.5).double())
    same = axplain.explain(smooth(), X, target=0, baselines=0.5)
    assert torch.equal(ours.attributions, same.attributions)


@pytest.mark.parametrize("name", METHODS)
def test_an_unused_input_of_a_tuple_gets_zeros(name: str) -> None:
    used = smooth()

    def model(a: Tensor, b: Tensor) -> Tensor:
        logits: Tensor = used(a)
        return logits[:, 1]

    pair, backgrounds = (X, seeded(5, 2, seed=1)), (X, seeded(5, 2, seed=2))
    with pytest.raises(RuntimeError, match="not have been used"):
        quietly(METHODS[name](model).attribute, pair, **_extra(name, backgrounds))
    found = axplain.explain(model, pair, name, **_extra(name, backgrounds)).attributions
    alone = axplain.explain(lambda a: model(a, a), X, name, **_extra(name)).attributions
    torch.testing.assert_close(found[0], alone, rtol=0, atol=1e-15)
    assert torch.equal(found[1], torch.zeros(5, 2).double())


@pytest.mark.parametrize("name", METHODS)
def test_an_empty_batch_is_named_as_such(name: str) -> None:
    with pytest.raises(IndexError, match="out of bounds"):
        quietly(METHODS[name](smooth()).attribute, X[:0], target=0, **_extra(name))
    with pytest.raises(axplain.ArgumentError, match=r"^x: an empty batch"):
        axplain.explain(smooth(), X[:0], name, target=0, **_extra(name))


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("name", METHODS)
def test_calls_inside_inference_mode_and_no_grad_give_the_same_numbers(name: str, context: Callable[[], Any]) -> None:
    model = smooth()
    outside = axplain.explain(model, X, name, target=0, **_extra(name)).attributions
    with context():
        if context is torch.inference_mode:
            with pytest.raises(RuntimeError, match="does not require grad"):
                quietly(METHODS[name](model).attribute, X.clone(), target=0, **_extra(name))
        for x in (X, X.clone()):  # an ordinary tensor, and one that the context made
            inside = axplain.explain(model, x, name, target=0, **_extra(name)).attributions
            assert torch.equal(inside, outside)
