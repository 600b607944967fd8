"""Take recurrent networks apart into one operator per layer and direction."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.fx import GraphModule, Node

from advisor.passes.fx import attribute, clone, constant_value, copy_meta, finish, stamp
from advisor.passes.recurrent import GRU, LSTM

aten = torch.ops.aten

MADE_BY: Final = "split_recurrent"
END: Final = 2**63 - 1
ZEROS: Final = frozenset[Any]({aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stack:
    """The arguments of aten.lstm or aten.gru. states: h0 and, of an LSTM, c0. parameters: of each
    layer and direction, in order: w_ih, w_hh and, where it has them, b_ih, b_hh."""

    x: Node
    states: tuple[Node, ...]
    parameters: tuple[tuple[Node, ...], ...]
    directions: int
    batch_first: bool


def split_recurrent(module: GraphModule) -> GraphModule:
    """One operator per layer and direction of every LSTM and GRU.

    Given: aten.lstm and aten.gru of whole tensors, layers and directions inside. Result:
    ``advisor::lstm`` and ``advisor::gru`` on (time, batch, channels), with initial states of zeros
    left out; transposes, slices and concatenations around them. Networks with projections, with
    computed weights or in training mode stay whole.
    """
    module = clone(module)
    for node in list(module.graph.nodes):
        stack = _stack_of(module, node)
        if stack is not None:
            _Split(module, node, stack).run()
    return finish(module)


def _stack_of(module: GraphModule, node: Node) -> _Stack | None:
    if node.target not in (aten.lstm.input, aten.gru.input):
        return None
    arguments: Any = node.args  # always all of them, in this order
    x, states, flat, has_biases, layers, dropout, train, bidirectional, batch_first = arguments
    directions, each = (2 if bidirectional else 1), (4 if has_biases else 2)
    are_weights = all(constant_value(module, weight) is not None for weight in flat)
    if not are_weights or (train and dropout) or len(flat) != layers * directions * each:
        return None
    if any(user.target is not operator.getitem for user in node.users):
        return None
    return _Stack(
        x=x,
        states=tuple(states) if node.target is aten.lstm.input else (states,),
        parameters=tuple(tuple(flat[i : i + each]) for i in range(0, len(flat), each)),
        directions=directions,
        batch_first=bool(batch_first),
    )


class _Split:
    """Builds what replaces one stack."""

    def __init__(self, module: GraphModule, node: Node, stack: _Stack) -> None:
        self.module, self.node, self.stack = module, node, stack
        self.is_lstm = node.target is aten.lstm.input
        self.read = {_index(user) for user in node.users}

    def run(self) -> None:
        x = self._swap(self.stack.x)
        hidden: list[Node] = []
        cells: list[Node] = []
        outputs: list[Node] = []
        for index, parameters in enumerate(self.stack.parameters):
            is_reverse = index % self.stack.directions == 1
            if not is_reverse and outputs:
                x, outputs = self._join(outputs, -1), []
            y, cell = self._call(x, index, parameters, is_reverse)
            outputs.append(y)
            if 1 in self.read:
                ends = (0, 1) if is_reverse else (-1, END)
                hidden.append(self._add(aten.slice.Tensor, (y, 0, *ends)))
            if cell is not None:
                cells.append(cell)
        results = [
            self._swap(self._join(outputs, -1)) if 0 in self.read else None,
            self._join(hidden, 0) if hidden else None,
            self._join(cells, 0) if cells else None,
        ]
        for user in list(self.node.users):
            result = results[_index(user)]
            assert result is not None  # made because it is read
            user.replace_all_uses_with(result)
            self.module.graph.erase_node(user)
        self.module.graph.erase_node(self.node)

    def _call(
        self, x: Node, index: int, parameters: Sequence[Node], is_reverse: bool
    ) -> tuple[Node, Node | None]:
        """Hidden states of one layer and direction, and its final cell state if it is read."""
        states = [self._state(state, index) for state in self.stack.states]
        weights = [*parameters, *[None] * (4 - len(parameters))]
        if not self.is_lstm:
            return self._add(GRU, (x, *states, *weights, is_reverse)), None
        with_cell = 2 in self.read
        found = self._add(LSTM, (x, *states, *weights, is_reverse, with_cell))
        if not with_cell:
            return found, None
        y = self._add(aten.slice.Tensor, (found, 0, 0, -1))
        return y, self._add(aten.slice.Tensor, (found, 0, -1, END))

    def _state(self, state: Node, index: int) -> Node | None:
        """One layer's initial state; None when it is zero."""
        constant = constant_value(self.module, state)
        if state.target in ZEROS or (constant is not None and not bool(constant.any())):
            return None
        if len(self.stack.parameters) == 1:
            return state
        return self._add(aten.slice.Tensor, (state, 0, index, index + 1))

    def _swap(self, node: Node) -> Node:
        return self._add(aten.transpose.int, (node, 0, 1)) if self.stack.batch_first else node

    def _join(self, nodes: Sequence[Node], dim: int) -> Node:
        return nodes[0] if len(nodes) == 1 else self._add(aten.cat.default, (list(nodes), dim))

    def _add(self, target: Any, arguments: tuple[Any, ...]) -> Node:
        with self.module.graph.inserting_before(self.node):
            made = self.module.graph.call_function(target, arguments)
        copy_meta(self.node, made)
        made.meta["val"] = _infer(self.module, made)
        return stamp(made, made_by=MADE_BY)


def _index(user: Node) -> int:
    """Which output of a stack its reader takes."""
    index: Any = user.args[1]
    return int(index)


def _infer(module: GraphModule, node: Node) -> Any:
    """The value of a new node, without data: symbolic sizes stay symbolic."""
    mode = next(
        source.meta["val"].fake_mode
        for source in node.all_input_nodes
        if hasattr(source.meta.get("val"), "fake_mode")
    )

    def value(source: Any) -> Any:
        if isinstance(source, list):
            items: list[Any] = source  # pyright: ignore[reportUnknownVariableType]  # a list of any
            return [value(item) for item in items]
        if not isinstance(source, Node):
            return source
        if source.op == "get_attr":
            return mode.from_tensor(attribute(module, str(source.target)))
        return source.meta["val"]

    target: Any = node.target
    with mode, torch.no_grad():
        return target(*[value(argument) for argument in node.args])
