"""Class activation maps of vision transformers as Hugging Face builds them, from configurations with drawn weights."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

import axplain

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers: Any = pytest.importorskip("transformers")

X = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 8, "num_labels": 5,
}  # fmt: skip
PLAIN = SMALL | {"image_size": (64, 96), "intermediate_size": 64}
STAGES: dict[str, Any] = {"num_labels": 5, "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 16, 32]}

#: class -> configuration, how the layer's name ends, the tokens in front of the patches, the grid
MODELS: dict[str, tuple[dict[str, Any], str, int, tuple[int, int]]] = {
    "ViT": (PLAIN, "1.layernorm_before", 1, (8, 12)),
    "DeiT": (PLAIN, "1.layernorm_before", 2, (8, 12)),
    "Beit": (PLAIN, "1.layernorm_before", 1, (8, 12)),
    "Dinov2WithRegisters": (SMALL | {"image_size": 96, "num_register_tokens": 4}, "1.norm1", 5, (8, 12)),
    "Swin": (
        {
            "num_labels": 5,
            "image_size": (64, 96),
            "embed_dim": 16,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 4,
        },
        "1.blocks.1.layernorm_after",
        0,
        (8, 12),
    ),
    "ConvNext": (STAGES, "stages.3", -1, (2, 3)),
    "Segformer": (STAGES, "3.blocks.0.layernorm_after", 0, (2, 3)),
}


def built(name: str) -> tuple[torch.nn.Module, str]:
    """Return a model, and the name of the layer that its entry means."""
    arguments, ends, _, _ = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(**arguments)
        model: torch.nn.Module = getattr(transformers, f"{name}ForImageClassification")(config).eval()
    (layer,) = [layer for layer, _ in model.named_modules() if layer.endswith(ends)]
    return model, layer


@pytest.mark.parametrize("method", ["gradcam", "layercam", "eigencam", "ablationcam"])
@pytest.mark.parametrize("name", MODELS)
def test_tokens_find_their_grid(name: str, method: str) -> None:
    model, layer = built(name)
    front, grid = MODELS[name][2:]
    asked: dict[str, Any] = {"layer": layer, "upsample": False, "relu": False}
    asked |= {} if method == "eigencam" else {"target": [1, 3]}
    found = axplain.explain(model, X, method, **asked).attributions
    assert found.shape == (2, 1, *grid) and float(found.abs().max()) > 0
    if front >= 0:

        def by_hand(tokens: Tensor) -> Tensor:
            return tokens[:, front:].transpose(1, 2).reshape(len(tokens), -1, *grid)

        expected = axplain.explain(model, X, method, reshape=by_hand, **asked).attributions
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["ViT", "Swin"])
def test_named_inputs_and_the_size_of_the_picture(name: str) -> None:
    model, layer = built(name)
    found = axplain.explain(model, {"pixel_values": X}, "gradcam", layer=layer, target=1)
    assert found.attributions.shape == (2, 1, 64, 96) and layer in repr(found)
    torch.testing.assert_close(
        found.attributions, axplain.explain(model, X, "gradcam", layer=layer, target=1).attributions
    )


def test_behind_the_last_attention_only_the_class_token_is_read() -> None:
    model, layer = built("ViT")
    behind = layer.replace("layernorm_before", "layernorm_after")
    with pytest.raises(axplain.ArgumentError, match=r"reads nothing from the tokens of x.*first norm of the last"):
        axplain.explain(model, X, "gradcam", layer=behind, target=1)
    with pytest.raises(axplain.ArgumentError, match=r"only convolution cuts the input into patches"):
        axplain.explain(model, X, "gradcam", target=1)


def test_tokens_in_mask_units_are_refused() -> None:
    """Hiera keeps its tokens in units and not in rows: read as rows they would be shuffled."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.HieraConfig(image_size=[64, 64], embed_dim=16, num_labels=5, depths=[1, 1, 2, 1])
        model = transformers.HieraForImageClassification(config).eval()
    for part in ("stages.0.layers.0.layernorm_before", "stages.3.layers.0.layernorm_after"):
        with pytest.raises(axplain.ArgumentError, match="tokens do not lie on their grid row after row"):
            axplain.explain(model, X[:, :, :, :64], "gradcam", layer=f"hiera.encoder.{part}", target=1)
