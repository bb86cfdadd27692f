"""The second witness: every node of the autograd graph between the target and the seat is ours or linear."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any, Final

from torch import Tensor

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
