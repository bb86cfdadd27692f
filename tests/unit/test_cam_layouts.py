"""What a layer holds becomes maps: which axes are space, which tokens are patches, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import axplain

X = torch.randn(2, 3, 24, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
GRID = (6, 4)


def settled(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model.double().eval()


class Vision(nn.Module):
    """A vision transformer of one block, with tokens that are not of x in front of those that are, or behind."""

    def __init__(
        self,
        front: int = 1,
        behind: int = 0,
        order: Callable[[Tensor], Tensor] = lambda t: t,
        linear: bool = False,
        by_class: bool = False,
    ) -> None:
        super().__init__()
        self.order, self.front, self.behind = order, front, behind
        self.linear, self.by_class = linear, by_class
        self.patches: nn.Module = nn.Linear(48, 8) if linear else nn.Conv2d(3, 8, 4, stride=4)
        self.added = nn.Parameter(torch.zeros(front + behind, 8))
        self.positions = nn.Parameter(torch.zeros(front + 24 + behind, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=True)
        self.keep, self.last = nn.Identity(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        if self.linear:
            cut = x.unfold(2, 4, 4).unfold(3, 4, 4)  # (rows, channels, 6, 4, 4, 4)
            tokens = self.patches(cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2))
        else:
            tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens, added = self.order(tokens), self.added.expand(len(x), -1, -1)
        parts = [added[:, : self.front], tokens, added[:, self.front :]]
        tokens = self.keep(self.block(torch.cat(parts, 1) + self.positions))
        return self.last(tokens[:, 0] if self.by_class else tokens.mean(1))


def by_hand(front: int) -> Callable[[Tensor], Tensor]:
    return lambda t: t[:, front : front + 24].transpose(1, 2).reshape(len(t), -1, *GRID)


METHODS = (
    "gradcam", "gradcam_plus_plus", "hirescam", "layercam", "xgradcam", "scorecam", "ablationcam", "finercam",
    "eigencam", "guided_gradcam",
)  # fmt: skip


def explain(model: nn.Module, layer: Any, method: str = "gradcam", x: Any = X, **given: Any) -> Tensor:
    target: dict[str, Any] = {} if method == "eigencam" else {"target": [2, 0]}
    if method != "guided_gradcam":
        target["relu"] = False
    else:
        given["unknown"] = "gradient"
    found: Tensor = axplain.explain(model, x, method, layer=layer, **(target | given)).attributions
    return found


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_tokens_lie_on_the_grid_of_the_patch_convolution_without_the_class_token(method: str) -> None:
    model = settled(Vision())
    found, expected = explain(model, "block", method), explain(model, "block", method, reshape=by_hand(1))
    close(found, expected)
    assert float(found.abs().max()) > 1e-6
    assert found.shape == (X.shape if method == "guided_gradcam" else (2, 1, 24, 16))


@pytest.mark.parametrize(("front", "behind"), [(0, 0), (1, 0), (5, 0), (1, 7)])
@pytest.mark.parametrize("linear", [False, True], ids=["convolution", "linear"])
def test_class_register_and_detection_tokens_are_told_by_noise(front: int, behind: int, linear: bool) -> None:
    model = settled(Vision(front, behind, linear=linear))
    for layer in ("block", "block.norm1", "keep"):
        found = explain(model, layer, upsample=False)
        assert found.shape == (2, 1, *GRID)
        close(found, explain(model, layer, upsample=False, reshape=by_hand(front)))


def test_a_place_of_the_map_is_the_place_of_the_patch() -> None:
    """Without attention in between, the value of one patch moves one place of the map."""
    model = settled(Vision(front=1))
    for i, j in ((0, 0), (5, 3), (2, 1)):
        x = X.clone()
        x[:, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4] += 1
        moved = (explain(model, "block.norm1", "eigencam", x, upsample=False) - explain(
            model, "block.norm1", "eigencam", upsample=False
        )).abs()[0, 0]  # fmt: skip
        kept = axplain.explain(model, x, "layer_activation", layer="block.norm1").attributions
        plain = axplain.explain(model, X, "layer_activation", layer="block.norm1").attributions
        (token,) = (kept - plain)[0].abs().amax(1).nonzero().flatten().tolist()
        assert token == 1 + 4 * i + j and bool(moved[i, j] > 0)


@pytest.mark.parametrize("method", ["gradcam", "hirescam", "ablationcam", "finercam", "guided_gradcam"])
def test_a_layer_behind_which_only_the_class_token_is_read_has_no_map(method: str) -> None:
    model = settled(Vision(by_class=True))
    for layer in ("block", "keep"):
        with pytest.raises(axplain.ArgumentError, match=r"reads nothing from the tokens of x.*before the last"):
            explain(model, layer, method)
    assert float(explain(model, "block.norm1", method).abs().max()) > 0


def columns(tokens: Tensor) -> Tensor:
    return tokens.reshape(len(tokens), *GRID, -1).transpose(1, 2).flatten(1, 2)


def windows(tokens: Tensor) -> Tensor:
    return tokens.reshape(len(tokens), 3, 2, 2, 2, -1).transpose(2, 3).flatten(1, 4)


@pytest.mark.parametrize("order", [columns, windows, lambda t: t.flip(1)], ids=["columns", "windows", "backwards"])
@pytest.mark.parametrize("layer", ["block", "block.norm1", "keep"])
def test_tokens_in_another_order_are_refused(order: Callable[[Tensor], Tensor], layer: str) -> None:
    model = settled(Vision(order=order))
    with pytest.raises(axplain.ArgumentError, match=r"tokens do not lie on their grid row after row.*Pass reshape="):
        explain(model, layer)
    assert explain(model, layer, reshape=by_hand(1)).shape == (2, 1, 24, 16)


def test_no_grid_is_guessed() -> None:
    class Twice(Vision):
        """Two convolutions whose maps have as many places."""

        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Conv2d(3, 8, (2, 8), stride=(8, 2), padding=(0, 3))

        def forward(self, x: Tensor) -> Any:
            assert self.other(x).shape[2:] == (3, 8)
            return super().forward(x)

    with pytest.raises(axplain.ArgumentError, match=r"2 grids fit its 24 tokens that depend on x.*Pass reshape="):
        explain(settled(Twice()), "block")

    class Words(nn.Module):
        """Tokens of words, that lie on no grid of a picture."""

        def __init__(self) -> None:
            super().__init__()
            self.words, self.last = nn.Linear(24 * 16, 7 * 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Any:
            return self.last(torch.tanh(self.words(x.mean(1).flatten(1)).unflatten(1, (7, 8))).mean(1))

    class Named(Words):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(8)

        def forward(self, x: Tensor) -> Any:
            return self.last(self.norm(self.words(x.mean(1).flatten(1)).unflatten(1, (7, 8))).mean(1))

    with pytest.raises(axplain.ArgumentError, match=r"layer 'norm' holds .7, 8.*no grid fits its 7 tokens"):
        explain(settled(Named()), "norm")


def test_merged_tokens_lie_on_the_merged_grid() -> None:
    class Merging(nn.Module):
        """As in Swin: (rows, places, channels), and 2 x 2 neighbours are merged."""

        def __init__(self, *, classes: int) -> None:
            super().__init__()
            self.patches, self.norm, self.merge = nn.Conv2d(3, 8, 2, stride=2), nn.LayerNorm(8), nn.Linear(32, 8)
            self.added = nn.Parameter(torch.zeros(classes, 8))
            self.block = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
            self.after, self.last = nn.LayerNorm(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Any:
            count = len(self.added)
            tokens = self.norm(self.patches(x).flatten(2).transpose(1, 2))
            tokens = self.block(torch.cat([self.added.expand(len(x), -1, -1), tokens], 1))
            grid = tokens[:, count:].unflatten(1, (6, 2, 4, 2)).transpose(2, 3).flatten(3)
            merged = self.merge(grid.flatten(3).flatten(1, 2))
            tokens = self.after(torch.cat([tokens[:, :count], merged], 1))
            return self.last(tokens.mean(1))

    for count in (0, 1):
        model = settled(Merging(classes=count))
        assert explain(model, "norm", upsample=False).shape == (2, 1, 12, 8)
        found = explain(model, "after", upsample=False)
        close(found, explain(model, "after", upsample=False, reshape=by_hand(count)))


class Last(nn.Module):
    """Channels last behind a permutation, as in torchvision's Swin: (rows, height, width, channels)."""

    def __init__(self, channels: int = 5) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, channels, 4, stride=4), nn.LayerNorm(channels)
        self.mix, self.keep, self.last = nn.Linear(channels, channels), nn.Identity(), nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Any:
        maps = self.keep(torch.tanh(self.mix(self.norm(self.first(x).permute(0, 2, 3, 1)))))
        return self.last(maps.mean((1, 2)))


@pytest.mark.parametrize("method", METHODS)
def test_channels_may_be_last(method: str) -> None:
    model = settled(Last())
    for layer in ("norm", "mix", "keep"):
        found = explain(model, layer, method)
        close(found, explain(model, layer, method, reshape=lambda t: t.permute(0, 3, 1, 2)))
    assert explain(model, "first", "gradcam", upsample=False).shape == (2, 1, *GRID)


def test_channels_that_could_be_on_either_side_are_refused() -> None:
    model = settled(Last(channels=6))
    assert explain(model, "norm", upsample=False).shape == (2, 1, *GRID)  # its type says it
    with pytest.raises(axplain.ArgumentError, match=r"'keep' holds .6, 4, 6. .*could be on either side.*Pass reshape="):
        explain(model, "keep")


def flat(*layers: nn.Module) -> nn.Module:
    return settled(nn.Sequential(*layers))


def test_layers_without_space_are_refused_by_name() -> None:
    model = flat(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    for layer, shape in (("2", r"\(4, 1, 1\)"), ("3", r"\(4,\)"), ("4", r"\(3,\)")):
        with pytest.raises(axplain.ArgumentError, match=f"layer '{layer}' holds {shape}.*before the pooling"):
            explain(model, layer)


def test_the_last_convolution_is_chosen_with_what_rectifies_it() -> None:
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    for body, layer in (
        ([nn.Conv2d(3, 4, 3)], "0"),
        ([nn.Conv2d(3, 4, 3), nn.ReLU()], "1"),
        ([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU()], "2"),
        ([nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2))], "0"),
        ([nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)], "1"),
    ):
        found = axplain.explain(flat(*body, *head), X, "gradcam", target=0)
        assert found.provenance["layer"] == f"layer '{layer}'" and f"layer '{layer}'" in repr(found)
    rectifier = nn.ReLU()
    shared = flat(nn.Conv2d(3, 4, 3), rectifier, nn.Conv2d(4, 4, 3), rectifier, *head)
    assert axplain.explain(shared, X, "gradcam", target=0).provenance["layer"] == "layer '1' (call 1)"
    close(explain(shared, None), explain(shared, axplain.seat("1", call=1)))


def test_where_there_is_no_convolution_to_choose_the_refusal_says_what_to_name() -> None:
    with pytest.raises(axplain.ArgumentError, match=r"only convolution cuts the input into patches.*Name a layer"):
        axplain.explain(settled(Vision()), X, "gradcam", target=0)
    with pytest.raises(axplain.ArgumentError, match="no convolution of the model gives a map"):
        axplain.explain(flat(nn.Flatten(), nn.Linear(3 * 24 * 16, 3)), X, "gradcam", target=0)
    with pytest.raises(axplain.ArgumentError, match="plain callable"):
        axplain.explain(lambda x: x.mean((2, 3)), X, "gradcam", target=0)


class Two(nn.Module):
    """A layer that returns two tensors, a layer that never runs, and two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.idle, self.last = Halves(), nn.Conv2d(3, 3, 3), nn.Linear(2, 3)

    def forward(self, x: Tensor, more: Tensor | None = None) -> Any:
        left, right = self.body(x if more is None else x + more)
        return self.last((left * right).mean((2, 3)))


class Halves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Any:
        return self.conv(x).tanh().chunk(2, 1)


def test_one_tensor_of_one_layer_is_explained() -> None:
    model = settled(Two())
    with pytest.raises(axplain.ArgumentError, match=r"layer: layer 'body' holds 2 tensors; expected one.*item=0"):
        explain(model, "body")
    assert explain(model, axplain.seat("body", item=1)).shape == (2, 1, 24, 16)
    with pytest.raises(axplain.ArgumentError, match="layer: several came; expected one: gradcam gives one map"):
        explain(model, ["body.conv", "body"])
    with pytest.raises(axplain.ArgumentError, match="layer 'idle' is never reached"):
        explain(model, "idle")


def test_several_inputs_have_no_one_size() -> None:
    model = settled(Two())
    with pytest.raises(axplain.ArgumentError, match=r"upsample: True came, and x has 2 inputs.*upsample=False gives"):
        explain(model, "body.conv", x=(X, X))
    assert explain(model, "body.conv", x=(X, X), upsample=False).shape == (2, 1, 22, 14)
    with pytest.raises(axplain.ArgumentError, match="x: 2 inputs came; expected one"):
        explain(model, "body.conv", "scorecam", (X, X), upsample=False)


class Signal(nn.Module):
    """Reads (rows, samples), or (rows, samples, channels): neither has its space behind batch and channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.act, self.last = nn.Conv1d(channels, 4, 3, padding=1), nn.ReLU(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        rows = x.unsqueeze(1) if x.ndim == 2 else x.transpose(1, 2)
        return self.last(self.act(self.conv(rows)).mean(2))


@pytest.mark.parametrize("shape", [(2, 30), (2, 30, 5)])
def test_an_input_whose_space_is_elsewhere_gets_the_layers_own_map(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = settled(Signal(1 if x.ndim == 2 else 5))
    for layer in ("conv", "act"):
        with pytest.raises(axplain.ArgumentError, match=r"upsample: True came.*map \(30,\).*upsample=False gives"):
            explain(model, layer, x=x)
    assert explain(model, "conv", x=x, upsample=False).shape == (2, 1, 30)
    with pytest.raises(axplain.ArgumentError, match=r"x: the shape .*the layer's map is \(30,\)"):
        explain(model, "conv", "scorecam", x, upsample=False)
    with pytest.raises(axplain.ArgumentError, match=r"x: the shape .*the layer's map is \(30,\)"):
        explain(model, "conv", "guided_gradcam", x)


def test_pictures_with_their_channels_last_are_refused() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Any:
            return self.last(self.conv(x.permute(0, 3, 1, 2)).mean((2, 3)))

    with pytest.raises(axplain.ArgumentError, match=r"\(2, 24, 16, 3\).*channels seem to be last.*upsample=False"):
        explain(settled(Turned()), "conv", x=X.permute(0, 2, 3, 1).contiguous())


@pytest.mark.parametrize(
    ("reshape", "message"),
    [
        (lambda t: t[:, 1:], None),
        (lambda t: t[0], "reshape: it made"),
        (lambda t: t.mean(1), "reshape: it made"),
        (lambda t: "tokens", "reshape: it made str of"),
        ((1, 2), "reshape: .*expected a callable"),
    ],
)
def test_a_reshape_that_gives_no_maps_is_refused(reshape: Any, message: str | None) -> None:
    model = settled(Vision())
    if message is None:  # three axes: one of space, which x does not have
        with pytest.raises(axplain.ArgumentError, match="upsample: True came"):
            explain(model, "block", reshape=reshape)
        return
    with pytest.raises(axplain.ArgumentError, match=message):
        explain(model, "block", reshape=reshape)


def test_ablation_takes_out_what_reshape_picks_and_nothing_that_it_computes() -> None:
    model = settled(Vision())
    with pytest.raises(axplain.ArgumentError, match="reshape: it gives numbers that the layer does not hold"):
        explain(model, "block", "ablationcam", reshape=lambda t: 2 * by_hand(1)(t))


def test_nothing_is_left_behind_by_the_look_at_the_tokens() -> None:
    model, state = settled(Vision()), torch.get_rng_state()
    explain(model, "block")
    assert all(not part._forward_hooks and not part._forward_pre_hooks for part in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert axplain.estimate(model, X, "ablationcam", layer="keep", target=1).forward_rows == 2 * (8 + 2)
    assert all(not part._forward_hooks and not part._forward_pre_hooks for part in model.modules())
