"""Explains something with the installed wheel: run from a folder that is not the checkout."""

import torch

import axplain

model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double().eval()
x = torch.randn(2, 4, dtype=torch.float64)

assert not axplain.catalog().broken, axplain.catalog().broken
for method in axplain.methods():
    baselines = x.mean(0, keepdim=True) if axplain.describe(method).baseline == "reference_set" else None
    if axplain.describe(method).requires.min_dims > 2:  # for pictures: two of one row
        explanation = axplain.explain(lambda x: model(x.flatten(1)), x[:, None, None], method)
    else:
        explanation = axplain.explain(model, x, method, baselines=baselines)
    assert explanation.attributions.numel() == x.numel()
    print(explanation)

explanation = axplain.explain(model, x, "integrated_gradients")
assert explanation.delta is not None and explanation.delta.abs().max() < 1e-12
restored = axplain.Explanation.load(explanation.save("explanation.safetensors"))
assert torch.equal(restored.attributions, explanation.attributions)
