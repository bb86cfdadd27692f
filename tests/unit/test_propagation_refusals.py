"""What DeepLIFT refuses: it says which operation, and where, and leaves everything as it was."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import axplain

WIDTH = 6
Forward = Callable[..., Tensor]
Make = Callable[[], nn.Module]


class Block(nn.Module):
    """A part of a network whose work is a function of x and a layer of its own."""

    def __init__(self, work: Forward, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.work, self.inner = work, inner or nn.Identity()
        for part in self.inner.modules():  # made when the tests were collected, before anything was seeded
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()  # type: ignore[operator]
        self.register_buffer("kept", torch.zeros(64, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.work(x, self)


class Net(nn.Module):
    """Linear, the part in question, linear."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.first, self.part, self.last = nn.Linear(WIDTH, WIDTH), part, nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.part(self.first(x)))  # type: ignore[no-any-return]


def block(work: Callable[[Tensor], Tensor], inner: nn.Module | None = None) -> Make:
    """Return a maker of a network with a block that does `work`."""
    return lambda: Net(Block(lambda x, _: work(x), inner)).double().eval()


def reading(work: Forward, inner: nn.Module | None = None) -> Make:
    """The same for work that needs the block itself."""
    return lambda: Net(Block(work, inner)).double().eval()


class Doubled(torch.autograd.Function):
    """A custom function, of which rules see nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x.relu()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return 2 * gradient


def in_a_thread(work: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a function that does its work in another thread, under the grad mode of this one."""

    def run(x: Tensor) -> Tensor:
        mode = torch.is_grad_enabled()
        found: list[Tensor] = []

        def target() -> None:
            with torch.set_grad_enabled(mode):
                found.append(work(x))

        thread = threading.Thread(target=target)
        thread.start()
        thread.join()
        return found[0]

    return run


def sequences(cell: nn.Module) -> Make:
    return reading(lambda x, self: self.inner(x.view(-1, 3, 2))[0].flatten(1), cell)


def _no_grad_gate(x: Tensor) -> Tensor:
    with torch.no_grad():
        gate = x.sigmoid()
    return x * gate


def _no_grad_write(x: Tensor) -> Tensor:
    h = x * 1.0
    with torch.no_grad():
        h[:, 0] = 0.0
    return h.tanh()


def _no_grad_scale(x: Tensor) -> Tensor:
    h = x * 1.0
    with torch.no_grad():
        h *= 2.0
    return h.tanh()


def _set(x: Tensor, index: Any, value: Any) -> Tensor:
    h = x * 1.0
    h[index] = value
    return h


def _mask_behind_a_view(x: Tensor) -> Tensor:
    whole = torch.zeros_like(x, requires_grad=False)
    part = whole[:, :3]
    part.copy_(x[:, :3])  # writes into `whole`, too
    return torch.where(whole > 0, x, 0.1 * x)


def _kept_by_data(x: Tensor, self: Any) -> Tensor:
    self.kept[: len(x)].data.copy_(x)
    return self.kept[: len(x)].tanh() + x  # type: ignore[no-any-return]


def _branch(x: Tensor) -> Tensor:
    rows = [row.tanh() if row[0] > row[1] else row.relu() for row in x]
    return torch.stack(rows)


def scripted(work: Callable[[Tensor], Tensor]) -> Make:
    """Return a maker of a network that calls a scripted function, not a scripted module."""
    return lambda: block(traced(work))()


def traced(work: Any) -> Any:
    return torch.jit.trace(work, torch.randn(2, WIDTH, dtype=torch.float64))  # type: ignore[no-untyped-call]


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


def _leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.1 * x)


def _route(x: Tensor, self: Any) -> Tensor:
    weight, chosen = self.inner(x).softmax(-1).topk(2, -1)
    experts = torch.stack([x.tanh(), x.sigmoid(), x.relu()], 1)
    picked = experts.gather(1, chosen[..., None].expand(-1, -1, WIDTH))
    return (weight[..., None] * picked).sum(1)  # type: ignore[no-any-return]


#: id -> the model, the operation that is refused, and the module that it runs in ("part" is the block).
OPERATIONS: dict[str, tuple[Make, str, str]] = {
    "lstm": (sequences(nn.LSTM(2, 2, batch_first=True)), "lstm", "part.inner"),
    "gru": (sequences(nn.GRU(2, 2, batch_first=True)), "gru", "part.inner"),
    "rnn": (sequences(nn.RNN(2, 2, batch_first=True)), "rnn_tanh", "part.inner"),
    "lstm cell": (reading(lambda x, self: self.inner(x)[0], nn.LSTMCell(6, 6)), "lstm_cell", "part.inner"),
    "gru cell": (reading(lambda x, self: self.inner(x), nn.GRUCell(6, 6)), "gru_cell", "part.inner"),
    "rnn cell": (reading(lambda x, self: self.inner(x), nn.RNNCell(6, 6)), "rnn_tanh_cell", "part.inner"),
    "hardshrink": (block(functional.hardshrink), "hardshrink", "part"),
    "cumprod": (block(lambda x: x.cumprod(1)), "cumprod", "part"),
    "routing": (reading(_route, nn.Linear(6, 3)), "topk", "part"),
    "topk": (block(lambda x: x.topk(6, 1)[0]), "topk", "part"),
    "sort": (block(lambda x: x.sort(1)[0]), "sort", "part"),
    "msort": (block(lambda x: x.T.msort().T), "msort", "part"),
    "median": (block(lambda x: x * x.median(1, keepdim=True)[0]), "median", "part"),
    "median of all": (block(lambda x: torch.stack([row * row.median() for row in x])), "median", "part"),
    "argmax": (block(lambda x: x.gather(1, x.argmax(1, keepdim=True)).expand(-1, 6)), "gather", "part"),
    "argsort": (block(lambda x: x[torch.arange(len(x))[:, None], x.argsort(1)]), "getitem", "part"),
    "where": (block(_leaky), "where", "part"),
    "masked_fill": (block(lambda x: x.masked_fill(x < 0, 0.0)), "masked_fill", "part"),
    "product with a mask": (block(lambda x: x * (x > 0)), "mul", "part"),
    "mask made a number": (block(lambda x: x * (x > 0).double()), "double", "part"),
    "written by a mask": (block(lambda x: _set(x, x > 0, 0.0)), "setitem", "part"),
    "written at an index": (block(lambda x: _set(x, (range(len(x)), x.argmax(1)), 0.0)), "setitem", "part"),
    "index_put": (block(lambda x: x.index_put((x < 0,), torch.zeros(()).double())), "index_put", "part"),
    "scatter": (block(lambda x: x.scatter(1, x.argmax(1, keepdim=True), 1.0)), "scatter", "part"),
    "one-hot": (block(lambda x: x * functional.one_hot(x.argmax(1), 6)), "mul", "part"),
    "detach": (block(lambda x: x * x.detach().tanh()), "tanh", "part"),
    "data": (block(lambda x: x * x.data), "mul", "part"),
    "values of new_tensor": (block(lambda x: x * x.new_tensor(x.detach())), "new_tensor", "part"),
    "no_grad": (block(_no_grad_gate), "mul", "part"),
    "writing under no_grad": (block(_no_grad_write), "tanh", "part"),
    "scaling under no_grad": (block(_no_grad_scale), "tanh", "part"),
    "mask behind a view": (block(_mask_behind_a_view), "where", "part"),
    "mask of a parameter": (block(lambda x: x * (nn.Parameter(x.detach()) > 0)), "mul", "part"),
    "rounding": (block(lambda x: x * x.round()), "mul", "part"),
    "item": (block(lambda x: torch.stack([row * row[0].item() for row in x])), "item", "part"),
    "bool": (block(_branch), "__bool__", "part"),
    "float": (block(lambda x: torch.stack([row * float(row[0]) for row in x])), "__float__", "part"),
    "list": (block(lambda x: x * torch.tensor(x.tolist()).double()), "tolist", "part"),
    "array": (block(lambda x: x * torch.from_numpy(x.detach().numpy().copy())), "numpy", "part"),
    "dropout in attention": (
        block(
            lambda x: functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], dropout_p=0.5)[:, 0]
        ),
        "dropout",
        "part",
    ),
}
#: id -> the model and a word of its graph: work that the mode cannot see.
UNSEEN: dict[str, tuple[Make, str]] = {
    "thread": (block(in_a_thread(torch.tanh)), "Tanh"),
    "mask in a thread": (block(in_a_thread(lambda x: x * (x > 0))), "Mul"),
    "where in a thread": (block(in_a_thread(_leaky)), "Where"),
    "sort in a thread": (block(in_a_thread(lambda x: x.sort(1)[0])), "Sort"),
    "vmap": (block(torch.func.vmap(torch.tanh)), "Tanh"),
    "where under vmap": (block(torch.func.vmap(_leaky)), "Where"),
    "sort under vmap": (block(torch.func.vmap(lambda row: row.sort()[0])), "Sort"),
    "mask under vmap": (block(torch.func.vmap(lambda row: row * (row > 0))), "Mul"),
    "scripted function": (scripted(torch.tanh), "Tanh"),
    "where in a traced function": (scripted(_leaky), "Where"),
}
#: id -> the model and what is said about it.
HIDDEN: dict[str, tuple[Make, str]] = {
    "scripted": (lambda: Net(torch.jit.script(nn.ReLU())).double(), "module 'part' is scripted"),
    "traced": (lambda: Net(traced(nn.Tanh())).double(), "module 'part' is scripted"),
    "compiled": (lambda: compiled(block(torch.tanh)()), "compiled: explain the module before"),
    "parallel": (lambda: nn.DataParallel(block(torch.tanh)()), "run by threads: explain model.module"),
}


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, WIDTH, dtype=torch.float64)


@pytest.fixture
def references() -> Tensor:
    return torch.randn(3, WIDTH, dtype=torch.float64)


class Surroundings:
    """What a call must leave alone: the model's tensors and hooks, the inputs, and the mode stack."""

    def __init__(self, model: nn.Module, *given: Tensor) -> None:
        self.model, self.given = model, given
        self.before = list(self._state())

    def _state(self) -> Iterator[Any]:
        for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers(), *enumerate(self.given)):
            yield name, id(tensor), tensor.data_ptr(), tensor.requires_grad, tensor.grad, tensor.detach().clone()
            yield name, sorted(vars(tensor))
        for name, module in self.model.named_modules():
            yield name, module.training, len(module._forward_hooks), len(module._backward_hooks), sorted(vars(module))
        yield torch._C._len_torch_function_stack(), torch.is_grad_enabled()

    def unchanged(self) -> None:
        """Assert that nothing changed."""
        for before, after in zip(self.before, self._state(), strict=True):
            assert before[:-1] == after[:-1]
            same = torch.equal(before[-1], after[-1]) if isinstance(before[-1], Tensor) else before[-1] == after[-1]
            assert same, before[0]


def refused(model: nn.Module, x: Tensor, references: Tensor, **settings: Any) -> str:
    """Return what is said where every kind of reference is refused, and demand that nothing is left behind."""
    around, said = Surroundings(model, x, references), []
    for given in (references[:1], axplain.distribution(references)):
        with pytest.raises(axplain.UncoveredOperation) as refusal:
            axplain.explain(model, x, "deeplift_shap", target=1, baselines=given, **settings)
        said.append(str(refusal.value))
        around.unchanged()
    assert said[0] == said[1]
    return said[0]


@pytest.mark.filterwarnings("ignore:Converting a tensor:UserWarning", "ignore:To copy construct:UserWarning")
@pytest.mark.parametrize(("make", "operation", "where"), OPERATIONS.values(), ids=OPERATIONS)
def test_an_operation_is_refused_by_name_and_module(
    make: Make, operation: str, where: str, x: Tensor, references: Tensor
) -> None:
    said = refused(make(), x, references)
    assert f"operation {operation!r}, called in module {where!r}" in said
    assert "unknown='gradient'" in said


@pytest.mark.parametrize(("make", "node"), UNSEEN.values(), ids=UNSEEN)
def test_work_that_the_mode_cannot_see_is_refused(make: Make, node: str, x: Tensor, references: Tensor) -> None:
    said = refused(make(), x, references)
    assert node.lower() in said.lower()


@pytest.mark.parametrize(("make", "said"), HIDDEN.values(), ids=HIDDEN)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_model_that_hides_its_operations_is_refused(make: Make, said: str, x: Tensor, references: Tensor) -> None:
    assert said in refused(make(), x, references)


def test_a_custom_function_is_refused(x: Tensor, references: Tensor) -> None:
    assert "called in module 'part'" in refused(block(Doubled.apply)(), x, references)


def test_a_buffer_written_past_autograd_is_refused(x: Tensor, references: Tensor) -> None:
    model = reading(_kept_by_data)()
    with pytest.raises(axplain.UncoveredOperation, match="module 'part'"):
        axplain.explain(model, x, "deeplift", target=1, baselines=references[:1])


def test_checkpointing_is_refused_in_our_words(x: Tensor, references: Tensor) -> None:
    def work(x: Tensor, self: Any) -> Any:
        return checkpoint(lambda h: self.inner(h.tanh()).relu(), x, use_reentrant=False)

    refused(
        reading(work, nn.Linear(WIDTH, WIDTH))(), x, references
    )  # torch runs it again in the backward pass, where the mode is off


def test_a_compiled_model_is_refused_before_it_runs(x: Tensor, references: Tensor) -> None:
    calls: list[int] = []

    def counted(x: Tensor) -> Tensor:
        calls.append(1)
        return x.tanh()

    with pytest.raises(axplain.UncoveredOperation, match="compiled"):
        given = axplain.distribution(references)
        axplain.explain(compiled(block(counted)()), x, "deeplift_shap", target=1, baselines=given)
    assert not calls


@pytest.mark.filterwarnings("ignore:the model:axplain.AxplainWarning")
@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(6), nn.RReLU(), nn.Dropout1d(0.2)], ids=repr)
def test_training_mode_is_refused_with_its_cure(layer: nn.Module, x: Tensor, references: Tensor) -> None:
    model = Net(layer).double().train()
    around = Surroundings(model, x)
    with pytest.raises(axplain.UncoveredOperation, match=r"module 'part' .*call model\.eval\(\)"):
        axplain.explain(model, x, "deeplift", target=1, baselines=references[:1])
    around.unchanged()


AGREEING: dict[str, Make] = {
    "where": block(lambda x: torch.where(x.abs() < 1e6, x.tanh(), x)),
    "masked_fill": block(lambda x: x.tanh().masked_fill(x > 1e6, 0.0)),
    "product with a mask": block(lambda x: x.tanh() * (x < 1e6)),
    "index": block(lambda x: x.tanh().gather(1, (x + 1e6 * torch.arange(6)).argsort(1))),
    "sort": block(lambda x: (x.tanh() + 10 * torch.arange(6)).sort(1)[0]),
    "topk": block(lambda x: (x.tanh() + 10 * torch.arange(6)).topk(3, 1)[0].repeat(1, 2)),
    "bool": block(lambda x: x.tanh() if bool((x < 1e6).all()) else x),
    "item": block(lambda x: x.tanh() * (x > -1e6).sum(1).max().item()),
    "no_grad": block(lambda x: x.tanh() * torch.no_grad()(lambda h: h > -1e6)(x)),
    "shape of another": block(lambda x: x.tanh() * torch.arange(6.0).to(x).expand_as(x)),
    "type of another": block(lambda x: x.tanh() + torch.ones(6).type_as(x) * torch.ones(1, 6).double().expand_as(x)),
}


@pytest.mark.parametrize("make", AGREEING.values(), ids=AGREEING)
def test_what_depends_on_data_works_where_example_and_reference_agree(
    make: Make, x: Tensor, references: Tensor
) -> None:
    explanation = axplain.explain(make(), x, "deeplift_shap", target=1, baselines=axplain.distribution(references))
    assert float(explanation.residuals["completeness"].abs().max()) <= 1e-10
    assert float(explanation.difference.abs().min()) > 1e-6  # type: ignore[union-attr]


def test_another_way_through_the_model_is_refused(x: Tensor, references: Tensor) -> None:
    calls: list[int] = []

    def forgetful(x: Tensor) -> Tensor:
        calls.append(1)
        return x.tanh() if len(calls) % 2 else x.sigmoid()

    with pytest.raises(axplain.UncoveredOperation, match=r"part.*'sigmoid' where the references came to 'tanh'"):
        axplain.explain(block(forgetful)(), x, "deeplift", target=1, baselines=references[:1], batch_size=8)


PLAIN_GRADIENT: dict[str, tuple[Make, str]] = {
    "hardshrink": (block(functional.hardshrink), "hardshrink in module 'part' (Block)"),
    "lstm": (sequences(nn.LSTM(2, 2, batch_first=True)), "lstm in module 'part.inner' (LSTM)"),
    "cumprod": (block(lambda x: x.cumprod(1)), "cumprod in module 'part' (Block)"),
    "mask": (block(lambda x: x * (x > 0)), "mul in module 'part' (Block)"),
    "detach": (block(lambda x: x.tanh() * x.detach()), "mul in module 'part' (Block)"),
    "no_grad": (block(_no_grad_gate), "mul in module 'part' (Block)"),
    "thread": (block(in_a_thread(torch.tanh)), "TanhBackward0"),
}


@pytest.mark.parametrize(("make", "note"), PLAIN_GRADIENT.values(), ids=PLAIN_GRADIENT)
def test_the_plain_gradient_is_taken_on_demand_noted_and_warned_about(
    make: Make, note: str, x: Tensor, references: Tensor
) -> None:
    model, given = make(), axplain.distribution(references)
    around = Surroundings(model, x, references)
    with pytest.warns(axplain.AxplainWarning, match="unknown='gradient'"):
        explanation = axplain.explain(model, x, "deeplift_shap", target=1, baselines=given, unknown="gradient")
    assert any(note in str(noted) for noted in explanation.notes.values()), explanation.notes
    assert bool((explanation.residuals["completeness"].abs() > 1e-10).any())
    around.unchanged()


def test_the_plain_gradient_is_that_of_torch(x: Tensor) -> None:
    model = block(functional.hardshrink)()
    zero = torch.zeros(1, WIDTH, dtype=torch.float64)
    found = axplain.explain(model, x, "deeplift", target=1, baselines=zero, unknown="gradient", verify=False)
    plain = axplain.explain(model, x, "input_x_gradient", target=1)
    torch.testing.assert_close(found.attributions, plain.attributions, rtol=0, atol=1e-12)
