"""The function mode: which tensors depend on the seat, and what happens to each operation that meets one.

`Recording` runs the references and writes the tape; `Following` runs the examples with a graph in which every operation
that has a rule is a node of ours. Both take the same decisions, so their records stay in step.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from axplain.errors import UncoveredOperation
from axplain.propagation.calls import CARRIES_INVERSE, Met, RuledCall, calling_module, module_calling, result_mark
from axplain.propagation.graph import hook_inputs, hook_output, new_nodes, shared_inputs
from axplain.propagation.marks import DIFFERS, LOST, Mark, Marks
from axplain.propagation.opaque import OPAQUE
from axplain.propagation.operations import (
    LIKE,
    READS,
    SELECTIONS,
    SEVERAL_RESULTS,
    SHAPED,
    STEPS,
    VIEWS,
    Operation,
    differentiable,
    flat,
    in_training,
    is_linear,
    is_whole,
    looked_into,
    name_of,
    no_grad,
    replaced,
    tensors_in,
)
from axplain.propagation.rules import (
    CONSTANT,
    HANDED_ON,
    OWN_GRADIENT,
    Application,
    Around,
    Call,
    Ledger,
    Passage,
    Rule,
    Ruled,
    RuleSet,
    Situation,
)
from axplain.propagation.tape import Kept, Reader, Tape
from axplain.structure import Tensors

_IN_TRAINING = "it runs in training mode; call model.eval() (functional dropout also needs training=self.training)"


class PropagationMode(TorchFunctionMode):
    """Marks what depends on the seat and sends each operation to its rule, to torch, or to an error."""

    def __init__(self, rules: RuleSet, root: torch.nn.Module | None, notes: set[str]) -> None:
        super().__init__()
        self.rules, self.root, self.notes = rules, root, notes
        self.sources: Any = WeakIdKeyDictionary()  # tensor -> the call that gave it, and its version then
        self.scratch: dict[Any, Any] = {}
        self.whole = True
        self._inside: list[Callable[..., Any]] = []
        self.marks = Marks()
        self.nodes: set[Any] = set()  # of linear operations; there are none without a graph
        self.own: set[Any] = set()  # of operations that keep their own gradient

    def depend(self, tensors: Tensors) -> None:
        """Say which tensors are the seat's."""
        for tensor in tensors:
            if differentiable(tensor):
                self.marks.put(tensor, "smooth")

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Decide what to do with one operation."""
        kwargs, name = kwargs or {}, name_of(func)
        if name.about:
            return func(*args, **kwargs)
        tensors = flat(args, kwargs)
        found = [(place, tensor, mark) for place, tensor in tensors if (mark := self.marks.of(tensor))]
        if not found:
            return func(*args, **kwargs)
        return self._meet(Met(func, name, args, kwargs, tensors, found))

    def _meet(self, met: Met) -> Any:
        name, function = met.name.name, met.function
        if in_training(name, met.arguments, met.keywords):
            return self._unknown(met, _IN_TRAINING)
        rule = self.rules.rule(name)
        if (
            met.name.python
            and function not in self._inside
            and (rule is None or not is_whole(name, met.arguments, met.keywords))
        ):
            return looked_into(self, self._inside, function, met.arguments, met.keywords)
        if getattr(function, "__name__", "") == "__set__" and name != "data":  # hooks, requires_grad
            return met.run()
        if name in READS:
            return self._read(met)
        if name in SHAPED or (name in LIKE and (0,) not in met.places):
            return met.run()
        if met.keywords.get("rounding_mode") is not None:
            return self._constants(name, no_grad(met.run))
        if any(mark in ("cut", "lost") for _, _, mark in met.found):
            return self._meet_cut(met)
        if met.written is not None:
            self._before_writing(met.written)
        if rule is not None and rule.choose is not None:
            rule = rule.choose(self._situation(met))
        linear = is_linear(name, met.places, met.arguments, met.keywords)
        if linear and not (rule is not None and rule.linear):
            inverse = name in CARRIES_INVERSE and met.found[0][2] == "inverse"
            if self._books(met):
                return self._ruled(met, HANDED_ON, "inverse" if inverse else "smooth")
            result = self._outputs(met, self._linear(met), "inverse" if inverse else "smooth")
            self._remember(result, met)
            return result
        if rule is CONSTANT and not met.name.in_place:
            return self._constants(name, no_grad(met.run))
        if rule is OWN_GRADIENT and self._books(met):
            return self._ruled(met, HANDED_ON)
        if rule is OWN_GRADIENT:
            return self._outputs(met, self._linear(met, self.own), "smooth")
        if rule is not None and "out" not in met.keywords:
            if rule.several or rule.fused or met.places in ([(0,)], [("input",)]):
                return self._ruled(met, rule)
            return self._unknown(met, "an argument that it takes as a constant depends on x")
        if name in OPAQUE:
            with self:
                result = OPAQUE[name](*met.arguments, **met.keywords)
                return result if met.written is None else met.written.copy_(result)
        return self._unruled(met)

    def _books(self, met: Met) -> bool:
        """Whether it is to be noted what an operation that moves elements drops, such as those of a border."""
        return False

    def _situation(self, met: Met) -> Situation:
        inverses = tuple(mark == "inverse" for _, _, mark in met.found)
        return Situation(met.call, inverses, self._source, lambda: calling_module(self.root), self.scratch, self.whole)

    def _source(self, tensor: Any) -> Call | None:
        call, version = self.sources.get(tensor, (None, None)) if isinstance(tensor, Tensor) else (None, None)
        return call if call is not None and tensor._version == version else None

    def _remember(self, result: Any, met: Met) -> None:
        if not self.rules.fuses or not isinstance(result, Tensor) or met.written is not None:
            return
        if not any(result is tensor for _, tensor, _ in met.found):  # as dropout in evaluation gives what it is given
            self.sources[result] = met.call, result._version

    def _linear(self, met: Met, nodes: set[Any] | None = None) -> Any:
        """Run an operation as it is, and remember which nodes it added to the graph."""
        before, result = met.nodes, met.run()
        written = () if met.written is None else (met.written,)
        known = self.nodes if nodes is None else nodes
        known.update(new_nodes([*tensors_in(result), *written], before, known))
        return result

    def _unruled(self, met: Met) -> Any:
        name = met.name.name
        if name in STEPS and not met.name.in_place:
            return self._constants(name, no_grad(met.run))
        if name in SELECTIONS and not met.name.in_place:
            return self._selected(met)
        if not met.name.in_place:
            result = no_grad(met.run)
            tensors = tensors_in(result)
            if not tensors:
                return result  # a size, a device, a dtype
            if not any(differentiable(tensor) for tensor in tensors):
                return self._constants(name, result)
        return self._unknown(met)

    def _selected(self, met: Met) -> Any:
        """Choose elements by their order: linear where the references chose the same."""
        result = self._linear(met)
        chosen = tuple(tensor for tensor in tensors_in(result) if not differentiable(tensor))
        if not chosen or not self._steer(met.name.name, chosen):
            self.uncovered(met.name.name, "it chooses other elements for the example than for its reference")
            for tensor in chosen:
                self.marks.put(tensor, "cut")
        for tensor in tensors_in(result):
            if differentiable(tensor):
                self._mark_result(tensor, "smooth")
        return result

    def _unknown(self, met: Met, why: str = "it has no rule") -> Any:
        """Refuse an operation, or take its plain gradient where that was asked for."""
        self.uncovered(met.name.name, why)
        return self._outputs(met, self._linear(met, self.own), "smooth")

    def _outputs(self, met: Met, result: Any, mark: Mark) -> Any:
        """Mark what an operation gave, and what it wrote to."""
        if met.written is not None:
            self.marks.write(met.written)
        for tensor in tensors_in(result):
            if not differentiable(tensor):
                return self._constants(met.name.name, result)
            self._mark_result(tensor, mark)
        if met.written is not None:
            self._mark_result(met.written, "smooth")
        return result

    def _mark_result(self, tensor: Tensor, mark: Mark) -> None:
        self.marks.put(tensor, mark if self._flows(tensor) else "lost")

    def _constants(self, name: str, result: Any) -> Any:
        """Give results without a gradient: constants where the references gave the same, else cut off."""
        tensors = tuple(tensors_in(result))
        if not self._steer(name, tensors):
            for tensor in tensors:
                self.marks.put(tensor, "cut")
                if name in ("detach", "data"):  # another object may come to look at the same numbers
                    self.marks.cut_memory(tensor)
        return result

    def _read(self, met: Met) -> Any:
        result, name = met.run(), met.name.name
        values = result.tolist() if hasattr(result, "tolist") else result
        if any(mark == "cut" for _, _, mark in met.found):
            self.uncovered(name, "it reads values that differ between the example and its reference")
        elif not self._steer(name, (), values):
            self.uncovered(name, "it reads a number that differs between the example and its reference")
        return result

    def _meet_cut(self, met: Met) -> Any:
        """Let tests of values that were cut off pass; refuse to compute with them."""
        lost = any(mark == "lost" for _, _, mark in met.found)
        result = no_grad(met.run) if not met.name.in_place else None
        tensors = tensors_in(result)
        if result is not None and not any(differentiable(tensor) for tensor in tensors):
            if lost and tensors:  # the references knew it and wrote it down
                return self._constants(met.name.name, result)
            for tensor in tensors:
                self.marks.put(tensor, "cut")
            return result
        self.uncovered(met.name.name, LOST if lost else DIFFERS)
        for _, tensor, mark in met.found:
            if mark in ("cut", "lost"):
                self.marks.put(tensor, "smooth" if mark == "lost" else None)
        with self:
            return met.run()

    def uncovered(self, name: str, why: str) -> None:
        """Refuse an operation, or note it where the plain gradient was asked for.

        Raises:
            UncoveredOperation: naming the operation and the module that it was called in.
        """
        where = self._where()
        if self.rules.unknown == "gradient":
            self.notes.add(f"{name} in {where}")
            return
        cure = "" if self.rules.relevance else ", or take its plain gradient with unknown='gradient'"
        raise UncoveredOperation(
            f"model: operation {name!r}, called in {where}, is not covered: {why}. Use a method without rules, such as "
            f"integrated_gradients{cure}."
        )

    def _where(self) -> str:
        return module_calling(self.root)

    @abstractmethod
    def _flows(self, tensor: Tensor) -> bool:
        """Whether a gradient flows through a result."""

    @abstractmethod
    def _steer(self, name: str, tensors: Tensors, values: Any = None) -> bool:
        """Note, or compare, what may steer the model; whether it is the same for example and reference."""

    @abstractmethod
    def _before_writing(self, tensor: Tensor) -> None:
        """Save what is still needed of a tensor that will be overwritten."""

    @abstractmethod
    def _surround(self, met: Met, around: Around, plain: Callable[..., Any], mark: Mark) -> Tensor:
        """Run an operation that keeps its own gradient between two changes; return its output."""

    @abstractmethod
    def _handed_on(self, met: Met, known: Tensor, change: Callable[..., Tensor], told: list[Tensor]) -> Tensor:
        """Put an operation into the graph that hands on the gradient; `known`: what it gives; `told`: and tells."""

    @abstractmethod
    def _apply(self, call: RuledCall, mark: Mark) -> Tensor:
        """Note, or put into the graph, an operation that has a rule; return its output."""

    def _ruled(self, met: Met, rule: Rule, mark: Mark | None = None) -> Any:
        """Run an operation that has a rule; one that writes runs on a copy, and then its result is written."""
        function, written = met.function, met.written
        plain = function if written is None else lambda first, *more, **named: function(first.clone(), *more, **named)
        others: list[Tensor] = []
        if rule.around is not None:
            output = self._surround(met, rule.around, plain, mark or result_mark(met))
        elif rule.onward is not None:
            result, extras = _given_by(met, rule, plain)
            output = self._handed_on(met, result, rule.onward, extras)
        else:
            result, extras = _given_by(met, rule, plain)
            first, *others = tensors_in(result)
            if rule.fused:
                met = met.replaced_by(rule.fused, self.marks)
                plain = met.function
            seen = tuple(tensor.clone() if tensor is written else tensor for _, tensor, _ in met.found)
            output = self._apply(RuledCall(met, rule, plain, seen, first, tuple(extras)), result_mark(met))
        self._remember(output, met)
        for other in others:
            self._constants(met.name.name, other)
        if written is None:
            return type(result)((output, *others)) if others else output
        written.copy_(output)
        self.nodes.update(new_nodes([written], {output.grad_fn}, self.nodes))
        self.marks.put(written, self.marks.of(output) or "smooth")
        self.marks.write(written)
        return written


def _given_by(met: Met, rule: Rule, plain: Callable[..., Any]) -> tuple[Any, list[Tensor]]:
    """Return what an operation gives, without a graph, and what the rule's own `run` gives beside it."""
    if rule.run is None:
        return no_grad(plain, *met.arguments, **met.keywords), []
    result, *extras = no_grad(rule.run, plain, *met.arguments, **met.keywords)
    return result, extras


class Recording(PropagationMode):
    """Runs the references and writes what operations with a rule saw."""

    def __init__(self, rules: RuleSet, root: torch.nn.Module | None, notes: set[str], tape: Tape) -> None:
        super().__init__(rules, root, notes)
        self.tape = tape

    def _flows(self, tensor: Tensor) -> bool:
        return True

    def _steer(self, name: str, tensors: Tensors, values: Any = None) -> bool:
        self.tape.add(name, tensors, values)
        return True

    def _before_writing(self, tensor: Tensor) -> None:
        self.tape.kept.before_writing(tensor)

    def _surround(self, met: Met, around: Around, plain: Callable[..., Any], mark: Mark) -> Tensor:
        raise AssertionError("rules that keep an operation's own gradient compare with no references")

    def _handed_on(self, met: Met, known: Tensor, change: Callable[..., Tensor], told: list[Tensor]) -> Tensor:
        raise AssertionError("rules that hand on a gradient compare with no references")

    def _apply(self, call: RuledCall, mark: Mark) -> Tensor:
        self.tape.add(call.met.name.name, call.saved)
        self.marks.put(call.output, mark)
        return call.output


class Following(PropagationMode):
    """Runs the examples with a graph of rules, in step with the tape of their references."""

    def __init__(
        self,
        rules: RuleSet,
        root: torch.nn.Module | None,
        notes: set[str],
        reader: Reader | None,
        ledger: Ledger | None = None,
    ) -> None:
        super().__init__(rules, root, notes)
        self.reader, self.ledger = reader, ledger
        self.kept = Kept()

    def _flows(self, tensor: Tensor) -> bool:
        return tensor.requires_grad and torch.is_grad_enabled()

    def _steer(self, name: str, tensors: Tensors, values: Any = None) -> bool:
        if self.reader is None:
            return True
        return self.reader.agrees(self.reader.next(name, self._where), tensors, values)

    def _before_writing(self, tensor: Tensor) -> None:
        self.kept.before_writing(tensor)

    def _apply(self, call: RuledCall, mark: Mark) -> Tensor:
        met, name = call.met, call.met.name.name
        number = self.reader.next(name, self._where) if self.reader else None
        places = tuple(met.places)
        inverses = tuple(mark == "inverse" for _, _, mark in met.found)
        # the inputs leave the arguments, or the graph would hold itself
        arguments, keywords = replaced(met.arguments, met.keywords, places, (None,) * len(places))
        known = call.output.detach()
        template = Operation(name, call.plain, tuple(arguments), keywords, places, (), known, (), inverses)
        saved = self.kept.keep(call.saved)
        application = Application(call.rule, template, saved, self.reader, number, [call.output], self._book(name))
        inputs = (tensor for _, tensor, _ in met.found)
        output: Tensor = Ruled.apply(application, *inputs)  # type: ignore[no-untyped-call]
        self._mark_result(output, mark)
        return output

    def _books(self, met: Met) -> bool:
        if self.ledger is None or met.written is not None:
            return False
        return met.name.name not in SEVERAL_RESULTS and met.name.name not in VIEWS

    def _surround(self, met: Met, around: Around, plain: Callable[..., Any], mark: Mark) -> Tensor:
        found = [tensor for _, tensor, _ in met.found]
        shares = around.shares or (1.0,) * len(found)
        given, edges = shared_inputs(found, shares, met.written)
        arguments, keywords = replaced(met.arguments, met.keywords, tuple(met.places), given)
        book = self._book(met.name.name)
        if around.before is not None:
            held = self.kept.keep(given)
        before = met.nodes | {node for node, _ in edges}
        result: Tensor = (around.through or plain)(*arguments, **keywords)
        nodes = new_nodes([result], before, self.own)
        self.own.update(nodes)
        if around.before is not None:
            hook_inputs(nodes, edges, around.before, held, shares, book)
        if around.through is not None:
            shown = no_grad(plain, *met.arguments, **met.keywords)
            passage = Passage(around.behind, self.kept.keep((shown,)), [shown], book and (lambda g, _: book(g, ())))
            result = Ruled.apply(passage, result)  # type: ignore[no-untyped-call]
        elif nodes:  # else it gave its argument itself
            hook_output(result, around.behind, self.kept.keep((result,)), book)
        self._mark_result(result, mark)
        return result

    def _handed_on(self, met: Met, known: Tensor, change: Callable[..., Tensor], told: list[Tensor]) -> Tensor:
        ((_, tensor, _),) = met.found
        book = self._book(met.name.name) if told else None
        passage = Passage(change, told, [known], book and (lambda arrived, left: book(arrived, (left,))))
        output: Tensor = Ruled.apply(passage, tensor)  # type: ignore[no-untyped-call]
        self._mark_result(output, result_mark(met))
        return output

    def _book(self, operation: str) -> Callable[[Any, Any], None] | None:
        """Return what notes down how much an operation keeps, where that was asked for."""
        ledger = self.ledger
        if ledger is None:
            return None
        name = f"{operation} in {self._where()}"

        def book(arrived: Tensor | float, left: Sequence[Tensor | None]) -> None:
            ledger.book(name, arrived, 0.0)
            for tensor in left:
                if tensor is not None:
                    ledger.book(name, 0.0, tensor)

        return book
