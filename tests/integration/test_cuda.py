"""The contract on a CUDA device: the CPU's numbers, untouched generators, out-of-memory halving."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import axplain

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

CALLS = [
    ("saliency", {}),
    ("input_x_gradient", {}),
    ("integrated_gradients", {}),
    ("integrated_gradients", {"tolerance": 1e-6}),
    ("integrated_gradients", {"noise": "smoothgrad"}),
    ("gradient_shap", {"stdev": 0.1}),
    ("vargrad", {"inner": "input_x_gradient"}),
]


def convolutional(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 16, 5)
    ).to(dtype).eval()  # fmt: skip


def pictures(dtype: torch.dtype, rows: int = 4) -> Tensor:
    return torch.randn(rows, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize(("method", "arguments"), CALLS)
def test_a_cuda_device_gives_the_numbers_of_the_cpu(
    method: str, arguments: dict[str, object], dtype: torch.dtype, within: float
) -> None:
    model, x = convolutional(dtype), pictures(dtype)
    background = pictures(dtype, 6).flip(0) * 0.5 if method == "gradient_shap" else None
    if "tolerance" in arguments and dtype is torch.float32:
        arguments = {"tolerance": 1e-4}  # float32 values differ by rounding, so a tighter rule would split elsewhere
        within = 1e-3
    on_cpu = axplain.explain(model, x, method, target=[0, 1, 2, 3], baselines=background, **arguments)  # type: ignore[arg-type]
    moved = background.cuda() if background is not None else None
    on_cuda = axplain.explain(
        convolutional(dtype).cuda(), x.cuda(), method, target=[0, 1, 2, 3], baselines=moved, **arguments  # type: ignore[arg-type]
    )  # fmt: skip
    assert on_cuda.attributions.is_cuda and on_cuda.attributions.dtype == dtype
    worst = (on_cuda.attributions.cpu() - on_cpu.attributions).abs().max()
    assert worst <= within * on_cpu.attributions.abs().max()


def test_the_generators_of_the_device_stay_where_they_are() -> None:
    model, x = convolutional(torch.float32).cuda(), pictures(torch.float32).cuda()
    torch.cuda.manual_seed(3)
    before = torch.cuda.get_rng_state()
    axplain.explain(model, x, "smoothgrad", target=0)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_a_model_that_draws_on_the_device_is_noticed_and_its_generator_put_back() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 3)).cuda().train()
    before = torch.cuda.get_rng_state()
    with (
        pytest.warns(axplain.AxplainWarning, match="training mode"),
        pytest.warns(axplain.AxplainWarning, match="random"),
    ):
        axplain.explain(model, pictures(torch.float32).cuda(), "saliency", target=0)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_tensors_on_another_device_are_refused_by_name() -> None:
    model, x = convolutional(torch.float32).cuda(), pictures(torch.float32)
    with pytest.raises(axplain.ArgumentError, match=r"x: a tensor on cpu came; expected one on cuda"):
        axplain.explain(model, x, "saliency", target=0)
    with pytest.raises(axplain.ArgumentError, match=r"baselines: a tensor on cpu came; expected one on cuda"):
        axplain.explain(model, x.cuda(), target=0, baselines=torch.zeros_like(x))


def test_a_chunk_that_does_not_fit_is_halved() -> None:
    class Hungry(nn.Module):
        """Asks for a terabyte per row beyond eight rows."""

        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 8:
                torch.empty(len(x) * 2**38, device=x.device)
            return x.flatten(1).sin().sum(1)

    x = pictures(torch.float64, 3).cuda()
    explanation = axplain.explain(Hungry(), x, batch_size=40)
    expected = axplain.explain(Hungry(), x, batch_size=8)
    torch.testing.assert_close(explanation.attributions, expected.attributions, atol=1e-12, rtol=0)
