"""The autograd graph between the target and the seat: changes at the nodes of an operation, and the second witness.

The second witness: every node between them is ours, of an operation that a mode saw, or linear.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from torch import Tensor

from axplain.structure import Tensors

#: Nodes that are linear in all that flows into them; a trailing number is cut off before the look-up.
LINEAR_NODES: Final = frozenset(
    {
        *("View", "UnsafeView", "ReshapeAlias", "Expand", "Permute", "Transpose", "T", "Squeeze", "Unsqueeze"),
        *("Clone", "Alias", "AsStrided", "Slice", "Select", "Index", "IndexSelect", "Gather", "Cat", "Stack"),
        *("Split", "SplitWithSizes", "UnsafeSplit", "Unbind", "Diagonal", "Repeat", "Roll", "Flip", "Tril"),
        *("Triu", "Unfold", "Rot90", "Trace", "Take", "MaskedSelect", "MaskedScatter", "MaskedFill", "Where"),
        *("IndexPut", "IndexAdd", "IndexCopy", "IndexFill", "Scatter", "ScatterAdd", "Fill", "Zero", "Add"),
        *("Sub", "Rsub", "Neg", "Sum", "Mean", "Cumsum", "ToCopy", "ToDense", "ConstantPadNd"),
        *("ReflectionPad1D", "ReflectionPad2D", "ReflectionPad3D", "ReplicationPad1D", "ReplicationPad2D"),
        *("ReplicationPad3D", "Im2Col", "Col2Im", "PixelShuffle", "PixelUnshuffle", "ChannelShuffle"),
        *("AvgPool2D", "AvgPool3D", "AdaptiveAvgPool2D", "AdaptiveAvgPool3D", "MkldnnAdaptiveAvgPool2D"),
        *("UpsampleNearest1D", "UpsampleNearest2D", "UpsampleNearest3D", "UpsampleLinear1D"),
        *("UpsampleBilinear2D", "UpsampleTrilinear3D", "UpsampleBicubic2D", "UpsampleNearestExact1D"),
        *("GridSampler2D", "UpsampleNearestExact2D", "UpsampleNearestExact3D", "UpsampleBilinear2DAa"),
        *("UpsampleBicubic2DAa", "NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm", "BatchNormImpl"),
        *("Copy", "CopySlices", "LiftFresh", "Topk", "Sort", "Kthvalue", "Median", "Nanmedian", "Mode"),
        *("NllLoss", "NllLoss2D", "AccumulateGrad", "Diag", "Conj", "ResolveConj", "DiagonalScatter"),
        *("SliceScatter", "NativeDropout", "UpsampleBicubic2DAA", "NllLossNd", "Lerp"),
        "BackwardHookFunction",  # around a module with a hook of the user's
    }
)
#: Nodes that are linear where a single one of their inputs leads to the seat: it is multiplied by a constant.
PRODUCT_NODES: Final = frozenset(
    {
        *("Mul", "Mm", "Bmm", "Addmm", "Baddbmm", "Addbmm", "Addmv", "Mv", "Dot", "Vdot", "Addr", "Addcmul", "Linear"),
        *("Convolution", "ConvolutionOverrideable", "SlowConv2D", "SlowConv3D", "MkldnnConvolution", "Div", "Kron"),
        *("CudnnConvolution", "ConvDepthwise2D", "ConvDepthwise3D", "ThnnConv2D", "Cross", "LinalgCross", "Lerp"),
        *("MpsConvolution", "Bilinear", "Trilinear"),
    }
)
#: Nodes that are linear only where what chooses or multiplies is a constant, which the mode must have seen itself.
CHOOSING_NODES: Final = PRODUCT_NODES | {
    *("Where", "MaskedFill", "MaskedSelect", "MaskedScatter", "Index", "IndexSelect", "Gather", "Take", "IndexPut"),
    *("IndexAdd", "IndexCopy", "IndexFill", "Scatter", "ScatterAdd", "Topk", "Sort", "Kthvalue", "Median", "Nanmedian"),
    *("Mode", "NllLoss", "NllLoss2D", "NllLossNd"),
}
OURS: Final = "RuledBackward"


def foreign_nodes(value: Tensor, leaves: tuple[Tensor, ...], seen: set[Any], own: set[Any]) -> Iterator[str]:
    """Yield the names of the nodes between a value and the leaves that are neither ours nor linear.

    `seen`: the nodes of operations that the mode let pass as linear. `own`: those of operations that keep their own
    gradient.
    """
    if _all_known(value.grad_fn, seen, own):
        return
    leading = _leading(value.grad_fn, {id(leaf) for leaf in leaves})
    for node in leading.values():
        name = node.name()
        if name == OURS or node in own:
            continue
        stem = _stem(name)
        if stem in LINEAR_NODES and (stem not in CHOOSING_NODES or node in seen):
            continue
        inputs = sum(following in leading for following, _ in node.next_functions)
        most = 2 if stem.startswith("Add") or stem == "Baddbmm" else 1
        if not (stem in PRODUCT_NODES and node in seen and inputs <= most):
            yield name


def _all_known(root: Any, seen: set[Any], own: set[Any]) -> bool:
    """Whether every node of the graph is ours, or of an operation with its own gradient, or moves and adds elements.

    Most graphs are such, and then nobody needs to know which of their nodes lead to a leaf.
    """
    met, stack = {root}, [root] if root is not None else []
    while stack:
        node = stack.pop()
        if node not in own:
            name = node.name()
            stem = _stem(name)
            if name != OURS and (stem not in LINEAR_NODES or (stem in CHOOSING_NODES and node not in seen)):
                return False
        for edge, _ in node.next_functions:
            if edge is not None and edge not in met:
                met.add(edge)
                stack.append(edge)
    return True


@functools.lru_cache(maxsize=4096)
def _stem(name: str) -> str:
    return re.sub(r"Backwards?\d*$", "", name.rpartition("::")[2])


def _leading(root: Any, leaves: set[int]) -> dict[Any, Any]:
    """Return the nodes from which a leaf can be reached, `root` among them if it can."""
    reaches: dict[Any, bool] = {}
    stack = [(root, False)]
    while stack:
        node, expanded = stack.pop()
        if node is None or (node in reaches and not expanded):
            continue
        following = [edge for edge, _ in node.next_functions if edge is not None]
        if expanded:
            reaches[node] = id(getattr(node, "variable", None)) in leaves or any(reaches.get(f) for f in following)
        else:
            reaches[node] = False
            stack.append((node, True))
            stack.extend((edge, False) for edge in following if edge not in reaches)
    return {node: node for node, reached in reaches.items() if reached}


#: Where a gradient goes on to: a node, and which of its outputs.
Edge = tuple[Any, int]
#: Notes down how much arrived at an operation, and what left it.
Book = Callable[[Any, Sequence[Tensor | None]], None]


def new_nodes(results: Sequence[Tensor], before: set[Any], known: set[Any]) -> dict[Any, tuple[Edge, ...]]:
    """Return the nodes that an operation added to the graph, and where each hands on to.

    `before`: the nodes of what it was given.
    """
    made: dict[Any, tuple[Edge, ...]] = {}
    stack = [tensor.grad_fn for tensor in results]
    while stack:
        node = stack.pop()
        if node is not None and node not in before and node not in known and node not in made:
            made[node] = node.next_functions
            stack += [edge for edge, _ in made[node]]
    return made


def shared_inputs(
    inputs: Sequence[Tensor], shares: Sequence[float], written: Tensor | None
) -> tuple[Tensors, dict[Edge, int]]:
    """Return what an operation is given, and the edge by which the gradient leaves it towards each input with a share.

    An input without one is given as a constant; one that comes twice, or from no operation, gets an edge of its own.
    What lies in the memory that the operation writes to is copied.
    """
    given, edges = [], dict[Edge, int]()
    for place, (tensor, share) in enumerate(zip(inputs, shares, strict=True)):
        if written is not None and tensor.untyped_storage().data_ptr() == written.untyped_storage().data_ptr():
            tensor = tensor.clone()
        if not share or not tensor.requires_grad:
            given.append(tensor.detach())
            continue
        if tensor.grad_fn is None or (tensor.grad_fn, tensor.output_nr) in edges:
            tensor = tensor.view_as(tensor)
        edges[tensor.grad_fn, tensor.output_nr] = place
        given.append(tensor)
    return tuple(given), edges


def hook_inputs(
    nodes: Mapping[Any, tuple[Edge, ...]],
    edges: dict[Edge, int],
    before: Callable[[Tensor, Tensor], Tensor],
    seen: Sequence[Tensor],
    shares: Sequence[float],
    book: Book | None,
) -> None:
    """Change what the nodes of an operation hand on to its inputs, and note it down."""
    for node, following in nodes.items():
        leading = [(k, edges[edge]) for k, edge in enumerate(following) if edge in edges]
        if leading:
            node.register_hook(_changing(leading, before, seen, shares, book))


def hook_output(
    result: Tensor, behind: Callable[[Tensor, Tensor], Tensor], kept: Sequence[Tensor], book: Book | None
) -> None:
    """Change what arrives at the last node of an operation, and note it down."""
    place = result.output_nr

    def arrive(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        gradient = gradients[place]
        if gradient is None:
            return gradients
        if book is not None:
            book(gradient, ())
        return (*gradients[:place], behind(gradient, kept[0]), *gradients[place + 1 :])

    assert result.grad_fn is not None, "the operation made a node"
    result.grad_fn.register_prehook(arrive)


def _changing(
    leading: Sequence[tuple[int, int]], before: Callable[[Tensor, Tensor], Tensor], seen: Sequence[Tensor],
    shares: Sequence[float], book: Book | None,
) -> Callable[..., tuple[Tensor | None, ...]]:  # fmt: skip
    def leave(onward: tuple[Tensor | None, ...], arrived: Any) -> tuple[Tensor | None, ...]:
        changed = list(onward)
        for k, place in leading:
            gradient = onward[k]
            if gradient is None:
                continue
            new = before(gradient, seen[place])
            changed[k] = new if shares[place] == 1 else new * shares[place]
            if book is not None:
                book(0.0, (changed[k],))
        return tuple(changed)

    return leave
