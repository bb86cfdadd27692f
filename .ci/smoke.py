"""Explains something with the installed wheel: run from a folder that is not the checkout."""

import torch

import axplain

model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double().eval()
x = torch.randn(2, 4, dtype=torch.float64)

pictures = torch.randn(2, 1, 4, 4, dtype=torch.float64)
maps = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(12, 3))
maps = maps.double().eval()
tokens = torch.randn(2, 3, 4, dtype=torch.float64)
attends = torch.nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).double().eval()

assert not axplain.catalog().broken, axplain.catalog().broken
for method in axplain.methods():
    spec = axplain.describe(method)
    given = {name: axplain.neuron("0", 1) for name, parameter in spec.parameters.items() if parameter.type == "neuron"}
    if spec.baseline == "reference_set":
        given["baselines"] = x.mean(0, keepdim=True)
    if spec.family == "attention":
        explanation = axplain.explain(attends, tokens, method, **({"target": (0, 1)} if spec.requires.target else {}))
        assert explanation.attributions.shape == (2, 3)
    elif spec.seats == ("layer",):
        explanation = axplain.explain(maps, pictures, method, layer="1")
        held = {True: 24, False: explanation.attributions.numel(), "input": pictures.numel()}[spec.mirrors]
        assert len(explanation.attributions) == 2 and explanation.attributions.numel() == held
    elif spec.requires.min_dims > 2:  # for pictures: two of one row
        explanation = axplain.explain(lambda x: model(x.flatten(1)), x[:, None, None], method, **given)
        assert explanation.attributions.numel() == x.numel()
    else:
        explanation = axplain.explain(model, x, method, **given)
        assert explanation.attributions.numel() == x.numel()
    print(explanation)

explanation = axplain.explain(maps, pictures, "integrated_gradients", layer="1", target=0)
assert explanation.attributions.shape == (2, 3, 2, 2) and explanation.delta.abs().max() < 1e-12
explanation = axplain.explain(model, x, "integrated_gradients")
assert explanation.delta is not None and explanation.delta.abs().max() < 1e-12
restored = axplain.Explanation.load(explanation.save("explanation.safetensors"))
assert torch.equal(restored.attributions, explanation.attributions)
