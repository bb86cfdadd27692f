"""What torch calls an operation, and which operations are linear: facts about torch, the same for every rule set."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import attrs
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from axplain.structure import Tensors

Place = tuple[Any, ...]

_SAME_MEMORY: Final = frozenset(
    {
        *("view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "permute", "transpose", "t", "T", "mT"),
        *("swapaxes", "swapdims", "movedim", "moveaxis", "squeeze", "unsqueeze", "expand", "expand_as", "alias"),
        *("broadcast_to", "contiguous", "to", "float", "double", "half", "bfloat16", "type", "type_as", "cpu", "cuda"),
        *("real", "positive", "conj", "resolve_conj", "resolve_neg", "as_strided", "narrow", "select", "slice"),
        *("getitem", "diagonal", "unfold", "identity", "sum_to_size"),
    }
)
#: Operations whose result may share memory with their argument; every element comes from one of it.
VIEWS: Final = _SAME_MEMORY | {
    *("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"),  # which hand on the tensor itself
}
#: Linear in all of their tensors together: sums, and everything that only moves, copies or casts elements.
LINEAR: Final = _SAME_MEMORY | {
    *("clone", "setitem", "take", "diag", "diag_embed", "tril", "triu", "roll", "flip", "fliplr", "flipud", "rot90"),
    *("repeat", "repeat_interleave", "tile", "unbind", "chunk", "split", "split_with_sizes", "tensor_split", "hsplit"),
    *("vsplit", "dsplit", "cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "column_stack"),
    *("row_stack", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "pad", "constant_pad_nd", "im2col"),
    *("col2im", "neg", "negative", "add", "sub", "subtract", "rsub", "sum", "mean", "cumsum", "diff", "trace", "zero"),
    *("copy", "masked_select", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d"),
    *("adaptive_avg_pool2d", "adaptive_avg_pool3d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
    *("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_linear1d"),
    *("broadcast_tensors", "atleast_1d", "atleast_2d", "atleast_3d", "block_diag", "upsample_bilinear2d"),
    *("upsample_trilinear3d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
}
#: Name -> the positional and named arguments that choose or place elements; linear where none of these depends on x.
CHOOSING: Final[Mapping[str, tuple[int | str, ...]]] = types.MappingProxyType(
    {
        "where": (0, "condition"),
        "masked_fill": (1, "mask"),
        "masked_scatter": (1, "mask"),
        "gather": (2, "index"),
        "take_along_dim": (1, "indices"),
        "index_select": (2, "index"),
        "index_add": (2, "index"),
        "index_copy": (2, "index"),
        "index_fill": (2, "index"),
        "index_put": (1, "indices"),
        "scatter": (2, "index"),
        "scatter_add": (2, "index"),
        "lerp": (2, "weight"),
        "nll_loss_nd": (1, "target"),
        "grid_sampler": (1, "grid"),
    }
)
#: Name -> the arguments that are multiplied with each other; linear where at most one of them depends on x.
FACTORS: Final[Mapping[str, frozenset[int | str]]] = types.MappingProxyType(
    {
        name: frozenset(arguments)
        for names, arguments in (
            (
                "mul multiply matmul mm bmm mv dot vdot inner outer ger",
                (0, 1, "other", "mat2", "vec", "vec2", "tensor"),
            ),
            ("linear bilinear kron cross", (0, 1, "input", "weight", "other", "input1", "input2")),
            ("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d", (0, 1, "input", "weight")),
            ("addmm addbmm baddbmm addmv", (1, 2, "mat1", "mat2", "batch1", "batch2", "mat", "vec")),
            ("addr addcmul", (1, 2, "vec1", "vec2", "tensor1", "tensor2")),
            ("einsum", (1,)),
            ("tensordot", (0, 1)),
        )
        for name in names.split()
    }
)
#: Name -> the divisor; linear in the dividend where the divisor does not depend on x.
DIVISOR: Final = types.MappingProxyType(
    {"div": (1, "other"), "divide": (1, "other"), "true_divide": (1, "other"), "addcdiv": (2, "tensor2")}
)
#: Constant between jumps, and what leaves the graph: their results are constants where example and reference agree.
STEPS: Final = frozenset({"sign", "sgn", "floor", "ceil", "round", "trunc", "fix", "heaviside", "detach", "data"})
#: A choice of elements by their order; linear where example and reference choose the same.
SELECTIONS: Final = frozenset({"topk", "sort", "msort", "median", "nanmedian", "kthvalue", "mode"})
#: Operations that give several tensors, or may.
SEVERAL_RESULTS: Final = SELECTIONS | {
    *("unbind", "chunk", "split", "split_with_sizes", "tensor_split", "hsplit", "vsplit", "dsplit", "max", "min"),
    *("broadcast_tensors", "atleast_1d", "atleast_2d", "atleast_3d", "max_pool1d_with_indices"),
    *("max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool1d", "adaptive_max_pool2d"),
    "adaptive_max_pool3d",
}
#: Results that take only shape, dtype and device from their argument.
SHAPED: Final = frozenset(
    {
        *("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty"),
        *("new_empty_strided",),
    }
)
#: What may be asked of a tensor without looking at its numbers.
ABOUT: Final = frozenset(
    {
        *("shape", "size", "dim", "ndim", "ndimension", "numel", "nelement", "len", "dtype", "device", "layout"),
        *("is_cuda", "is_cpu", "is_mps", "is_meta", "is_sparse", "is_quantized", "is_nested", "is_floating_point"),
        *("is_complex", "is_contiguous", "stride", "element_size", "itemsize", "requires_grad", "is_leaf"),
        *("storage_offset", "get_device", "names", "has_names", "is_inference", "__len__"),
    }
)
#: The second argument lends its shape, dtype or device alone.
LIKE: Final = frozenset({"to", "type_as", "expand_as", "view_as", "reshape_as"})
#: Numbers that leave torch: the same for example and reference, or what follows cannot be explained.
READS: Final = frozenset(
    {"item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__", "is_nonzero", "equal", "allclose"}
)
#: Random, or mixing examples, in training: name -> position of the flag that says so.
TRAINING_FLAG: Final[Mapping[str, int]] = types.MappingProxyType(
    {
        "batch_norm": 5,
        "rrelu": 3,
        **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"), 2),
    }
)
#: Functions that torch wrote in Python and that are one operation all the same, and the argument, by position and name,
#: that makes them another one.
WHOLE: Final[Mapping[str, tuple[int, str]]] = types.MappingProxyType(
    {
        **dict.fromkeys(("softsign", "tanhshrink"), (1, "")),
        **dict.fromkeys(("relu", "relu6", "silu"), (1, "inplace")),
        **{f"max_pool{n}d": (6, "return_indices") for n in (1, 2, 3)},
    }
)
_CHECKS: Final = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


@attrs.frozen
class Name:
    """An operation by its canonical name, whether it writes into its first argument, and whether it tells but a shape.

    `python`: torch wrote it in Python, so that a mode can look inside.
    """

    name: str
    in_place: bool = False
    python: bool = False
    about: bool = attrs.field(init=False)

    @about.default
    def _tells_no_numbers(self) -> bool:
        return self.name in ABOUT and not self.in_place


@functools.lru_cache(maxsize=4096)
def name_of(function: Callable[..., Any]) -> Name:
    """Return the name that all spellings of an operation share: `F.relu`, `torch.relu_`, `Tensor.__iadd__`."""
    name, in_place = _spelled(function)
    return Name(name, in_place, python=is_python(function))


def _spelled(function: Callable[..., Any]) -> tuple[str, bool]:
    """Return the name without what spells it as a property, an operator or a write, and whether it writes."""
    name = getattr(function, "__name__", type(function).__name__)
    if name in ("__get__", "__set__"):
        return function.__self__.__name__, name == "__set__"  # type: ignore[attr-defined]
    if name.startswith("__"):
        plain = name.strip("_")
        if plain == "setitem":
            return plain, True
        if plain[0] == "i" and plain[1:] in _OPERATORS:
            return _OPERATORS[plain[1:]], True
        return _OPERATORS.get(plain, name), False
    if name.endswith("_") and not name.startswith("_"):
        return name[:-1], True
    return name, False


_OPERATORS: Final = {
    **{name: name for name in ("add", "sub", "mul", "matmul", "pow", "div", "neg", "abs", "getitem")},
    "truediv": "div",
}


def flat(arguments: Sequence[Any], keywords: Mapping[str, Any]) -> list[tuple[Place, Tensor]]:
    """Return every tensor among the arguments, and where it is; lists and tuples are looked into."""
    found: list[tuple[Place, Tensor]] = []
    for key, value in (*enumerate(arguments), *keywords.items()):
        if isinstance(value, Tensor):
            found.append(((key,), value))
        elif isinstance(value, list | tuple):
            found += [((key, place), item) for place, item in enumerate(value) if isinstance(item, Tensor)]
    return found


def replaced(
    arguments: tuple[Any, ...], keywords: Mapping[str, Any], places: tuple[Place, ...], tensors: Sequence[Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments with other tensors at some places."""
    positional, named = list(arguments), dict(keywords)
    for place, tensor in zip(places, tensors, strict=True):
        holder: Any = named if isinstance(place[0], str) else positional
        if len(place) == 2:
            items = list(holder[place[0]])
            items[place[1]] = tensor
            holder[place[0]] = type(holder[place[0]])(items)
        else:
            holder[place[0]] = tensor
    return positional, named


def is_linear(name: str, places: list[Place], arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> bool:
    """Whether the operation is affine in the tensors at `places`, the others being constants."""
    heads = [place[0] for place in places]
    if name in LINEAR:
        return not (name in ("getitem", "setitem") and 1 in heads)  # an index that depends on x
    if name in CHOOSING:
        return not any(head in CHOOSING[name] for head in heads)
    if name in FACTORS:
        wanted = FACTORS[name]
        if name == "einsum":
            return len(places) == 1
        return sum(head in wanted for head in heads) <= 1
    if name in DIVISOR:  # rounding makes a step of it, which the mode sees first
        return not any(head in DIVISOR[name] for head in heads)
    if name in TRAINING_FLAG:
        return name != "rrelu" and heads == [0]
    if name == "instance_norm":
        statistics = keywords.get("use_input_stats", arguments[5] if len(arguments) > 5 else True)
        return not statistics and heads == [0]
    return False


def in_training(name: str, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> bool:
    """Whether a call draws random numbers or mixes examples, as it does in training."""
    if name not in TRAINING_FLAG:
        return False
    drops, position = name.endswith("dropout"), TRAINING_FLAG[name]
    if drops and not keywords.get("p", arguments[1] if len(arguments) > 1 else 0.5):
        return False
    given = arguments[position] if len(arguments) > position else drops
    return bool(keywords.get("training", keywords.get("train", given)))


@functools.lru_cache(maxsize=4096)
def transparent(function: types.FunctionType) -> Callable[..., Any]:
    """Return a function of torch that is written in Python without its check for modes.

    The check would hand it to the mode again, and again; without it the mode sees the operations inside.
    """
    scope = {**function.__globals__, **dict.fromkeys(_CHECKS, lambda *_: False)}
    held = [cell.cell_contents for cell in function.__closure__ or ()]
    cells = tuple(
        types.CellType(transparent(item) if is_python(item) and item is not function else item) for item in held
    )
    twin = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__, cells)
    twin.__kwdefaults__ = function.__kwdefaults__
    return twin


def is_python(function: Callable[..., Any]) -> bool:
    """Whether torch wrote the function in Python, so that a mode can look inside."""
    return inspect.isfunction(function)


def looked_into(
    mode: TorchFunctionMode,
    inside: list[Callable[..., Any]],
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    keywords: Mapping[str, Any],
) -> Any:
    """Call a function that torch wrote in Python so that a mode sees the operations inside.

    `inside`: the functions that the mode is in. One that calls its parent's comes back by the same name, as
    `Tensor.unflatten` does, and is not entered again.
    """
    inside.append(function)
    try:
        with mode:
            return transparent(function)(*arguments, **keywords)
    finally:
        inside.pop()


def is_whole(name: str, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> bool:
    """Whether a function that torch wrote in Python is one operation, with no need to look inside."""
    return name in WHOLE and not argument_of(arguments, keywords, *WHOLE[name])


def argument_of(
    arguments: tuple[Any, ...], keywords: Mapping[str, Any], position: int, name: str, default: Any = None
) -> Any:
    """Return an argument of a call by its position or name."""
    if name in keywords:
        return keywords[name]
    return arguments[position] if len(arguments) > position else default


@attrs.frozen(eq=False)
class Operation:
    """One call of an operation, as a rule sees it.

    `inputs`: the tensors that depend on the seat, in order; `output`: what came out; `extras`: what the rule's own
    `run` gave beside it. All are without a graph. `inverses`: which inputs stand for one over something.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    places: tuple[Place, ...]
    inputs: Tensors
    output: Tensor
    extras: Tensors = ()
    inverses: tuple[bool, ...] = ()

    def at(self, *inputs: Tensor) -> Any:
        """Return the output for other inputs."""
        positional, named = replaced(self.arguments, self.keywords, self.places, inputs)
        return self.function(*positional, **named)

    def unflatten(self, sizes: tuple[int, int]) -> Operation:
        """Return the operation with its rows as (references, examples)."""
        inputs, extras = (tuple(split_rows(t, sizes) for t in tensors) for tensors in (self.inputs, self.extras))
        return attrs.evolve(self, inputs=inputs, output=split_rows(self.output, sizes), extras=extras)

    def widened(self) -> Operation:
        """Return the operation in float32, its output computed again."""
        inputs = tuple(_wide(tensor) for tensor in self.inputs)
        constants = [(place, tensor) for place, tensor in flat(self.arguments, self.keywords)]
        places = tuple(place for place, _ in constants)
        arguments, keywords = replaced(self.arguments, self.keywords, places, [_wide(t) for _, t in constants])
        wide = attrs.evolve(self, arguments=tuple(arguments), keywords=keywords, inputs=inputs)
        output = no_grad(wide.at, *inputs) if not self.extras else _wide(self.output)
        return attrs.evolve(wide, output=output if isinstance(output, Tensor) else _wide(self.output))

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument of the call by its position or name."""
        return argument_of(self.arguments, self.keywords, position, name, default)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def split_rows(tensor: Tensor, sizes: tuple[int, int]) -> Tensor:
    """View rows, which are reference-major, as (references, examples, ...)."""
    return tensor.reshape(*sizes, *tensor.shape[1:])


def tensors_in(result: Any) -> list[Tensor]:
    """Return the tensors of a result: a tensor, or a tuple or list of them."""
    if isinstance(result, Tensor):
        return [result]
    return [item for item in result if isinstance(item, Tensor)] if isinstance(result, tuple | list) else []


def differentiable(tensor: Tensor) -> bool:
    """Whether a tensor holds numbers that a gradient can flow through."""
    return tensor.is_floating_point() or tensor.is_complex()


def no_grad(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """Call a function without making a graph."""
    with torch.no_grad():
        return function(*arguments, **keywords)
