"""Functions of tensors as graphs: written down by `torch.fx`, run in a loop of their own, compiled by TorchInductor."""

import logging
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from operator import getitem
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.utils._pytree import tree_flatten, tree_unflatten

from ppl_vae.errors import OptionError, ProgramError, first_line
from ppl_vae.infer.quantile import normal_quantile, short_normal_quantile

log = logging.getLogger(__name__)

Flat = Callable[..., Any]


class Untraceable(ProgramError):
    """Why there is no graph."""


class Traced(NamedTuple):
    """A graph, and the constants that are its last inputs."""

    graph: GraphModule
    constants: list[Tensor]


def traced(call: Flat, inputs: Sequence[Tensor], others: Sequence[Tensor]) -> Traced:
    """A function of tensors, which changes none of them, as a graph.

    Args:
        call: the function; it is run, on copies.
        inputs: of it.
        others: of the same shapes and other values: what differs between the two graphs depends on values that no graph
            sees, as numbers that went through NumPy do.

    Raises: Untraceable.
    """
    one, two = _traced(call, inputs), _traced(call, others)
    if one.graph.code != two.graph.code or not all(map(torch.equal, one.constants, two.constants)):
        raise Untraceable("the programs do what no graph sees: arithmetic of NumPy, a counter, or a choice by a value")
    return one


def _traced(call: Flat, inputs: Sequence[Tensor]) -> Traced:
    graph = written(call, inputs)
    for node in reversed(graph.graph.nodes):
        if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
            continue
        if node.users or any(len(value.users) > 1 for value in node.all_input_nodes):
            raise Untraceable(f"the programs draw noise of their own, by {node.target}")
        graph.graph.erase_node(node)  # a draw that nothing reads, as of a program run for its shapes
    for node in [node for node in graph.graph.nodes if node.target is torch.ops.aten.detach.default]:
        node.replace_all_uses_with(node.args[0])  # there are no gradients here
    graph.graph.eliminate_dead_code()
    constants = _lifted(graph)
    graph.recompile()
    return Traced(graph, constants)


def written(call: Flat, inputs: Sequence[Tensor], terms: dict[Any, Any] | None = None) -> GraphModule:
    """What a function does to these inputs; some of its operations in other terms."""
    from torch.fx.experimental.proxy_tensor import make_fx

    with torch.no_grad():
        graph = make_fx(lambda *tensors: call(*tensors), decomposition_table=terms)(
            *(value.clone() for value in inputs)
        )
    graph.graph.eliminate_dead_code()
    for node in graph.graph.nodes:
        node.meta.pop("val", None)
    graph.recompile()
    return graph


def _lifted(graph: GraphModule) -> list[Tensor]:
    """Turn tensors that a graph holds into its last inputs, so that graphs that differ in these alone are one."""
    constants: dict[Any, tuple[Any, Tensor]] = {}
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    last = placeholders[-1]
    for node in [node for node in graph.graph.nodes if node.op == "get_attr"]:
        if node.target not in constants:
            with graph.graph.inserting_after(last):
                last = graph.graph.placeholder(f"held{len(constants)}")
            constants[node.target] = (last, getattr(graph, node.target).detach())
        node.replace_all_uses_with(constants[node.target][0])
        graph.graph.erase_node(node)
    return [value for _, value in constants.values()]


# ---- what can be done beforehand


def parted(graph: GraphModule, inputs: Sequence[Tensor], places: range) -> tuple[GraphModule | None, GraphModule]:
    """Part off what depends on some inputs alone, as a graph from these to what the rest then takes in their place.

    Args:
        graph: of `inputs`.
        inputs: of it.
        places: of the inputs in question, of which there may be none.

    Returns: the first graph, or None if nothing can be done beforehand, and the second one.
    """
    if _changes_inputs(graph):
        graph = written(torch.func.functionalize(graph, remove="mutations"), inputs)
    heads = [node for node in graph.graph.nodes if node.op == "placeholder"]
    own = {heads[j] for j in places}
    for node in graph.graph.nodes:
        if node.op == "call_function" and node.all_input_nodes and own.issuperset(node.all_input_nodes):
            own.add(node)
    border = [node for node in graph.graph.nodes if node in own and any(user not in own for user in node.users)]
    if own.issubset(heads) or not border:
        return None, graph
    before, copies = Graph(), dict[Any, Any]()
    for node in graph.graph.nodes:
        if node in own:
            copies[node] = before.node_copy(node, copies.__getitem__)
    before.output(tuple(copies[node] for node in border))
    last = heads[places.start - 1]
    for node in border:
        with graph.graph.inserting_after(last):
            last = graph.graph.placeholder(f"done_{node.name}")
        node.replace_all_uses_with(last)
    graph.graph.eliminate_dead_code()
    for j in places:
        graph.graph.erase_node(heads[j])
    graph.recompile()
    return GraphModule(nn.Module(), before), graph


def _changes_inputs(graph: GraphModule) -> bool:
    """Whether any of its operations changes a tensor in place."""
    return any(getattr(getattr(node.target, "_schema", None), "is_mutable", False) for node in graph.graph.nodes)


# ---- fewer operations

aten = torch.ops.aten
SHAPES = {aten.new_zeros.default, aten.new_ones.default, aten.zeros_like.default, aten.ones_like.default}
"""What depends on the shapes of its inputs alone."""
ONES = {aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar}
NOTHING = {aten.expand.default, aten.view.default, aten._unsafe_view.default, aten.alias.default, aten._to_copy.default}
"""What may leave its input as it is."""


class Watched(Interpreter):
    """Runs a graph, and keeps of each node's tensor what it looks like, and the values of constants.

    Attributes:
        looks: shape, strides, type and device.
        constants: values that do not depend on those of the inputs.
    """

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.looks: dict[Any, Any] = {}
        self.constants: dict[Any, Tensor] = {}

    def run_node(self, n: Any) -> Any:
        found = super().run_node(n)
        if isinstance(found, Tensor):
            self.looks[n] = found.shape, found.stride(), found.dtype, found.device
            if n.op == "call_function" and (n.target in SHAPES or self.constants.keys() >= set(n.all_input_nodes)):
                self.constants[n] = found
        return found


def lean(graph: GraphModule, inputs: Sequence[Tensor]) -> GraphModule:
    """A graph with fewer operations, to be run one by one: no constants made anew, nothing twice, none that do nothing."""
    if _changes_inputs(graph):
        return graph
    watched, seen = Watched(graph), dict[Any, Any]()
    with torch.no_grad():
        watched.run(*inputs)
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        key = (node.target, str(node.args), str(node.kwargs))
        if node in watched.constants:
            name = f"constant_{node.name}"
            graph.register_buffer(name, watched.constants[node])
            with graph.graph.inserting_before(node):
                node.replace_all_uses_with(graph.graph.get_attr(name))
        elif key in seen:
            node.replace_all_uses_with(seen[key])
        elif _does_nothing(node, watched.looks):
            node.replace_all_uses_with(node.args[0])
        else:
            seen[key] = node
    graph.graph.eliminate_dead_code()
    _set_apart(graph, inputs)
    return graph


def _set_apart(graph: GraphModule, inputs: Sequence[Tensor]) -> None:
    """Copy outputs that share memory with inputs, constants or each other: the caller may change them in place."""
    graph.recompile()
    with torch.no_grad():
        values, _ = tree_flatten(graph(*inputs))
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    nodes, spec = tree_flatten(output.args[0])
    taken = {value.untyped_storage().data_ptr() for value in (*inputs, *graph.buffers())}
    for place, value in enumerate(values):
        where = value.untyped_storage().data_ptr()
        if where in taken:
            with graph.graph.inserting_before(output):
                nodes[place] = graph.graph.call_function(aten.clone.default, (nodes[place],))
        taken.add(where)
    output.args = (tree_unflatten(nodes, spec),)
    graph.recompile()


def _does_nothing(node: Any, looks: dict[Any, Any]) -> bool:
    if not node.args or not isinstance(node.args[0], Node) or looks.get(node) != looks.get(node.args[0], 0):
        return False
    by_one = node.target in ONES and not isinstance(node.args[1], Node) and node.args[1] == 1
    return by_one or node.target in NOTHING


# ---- steps one after another


def looped(step: Flat, state: Sequence[Tensor], held: Sequence[Tensor], stacks: Sequence[Tensor]) -> GraphModule:
    """Steps one after another in one graph, until one of them is not good.

    Args:
        step: (state, held, what belongs to one step) to its sums, whether it was good, as () of bool, and the next state.
        state: what steps change, in place: an optimiser's step is limited by memory, and half of it would be copies.
        held: what they only read.
        stacks: (L, ...) of what belongs to each step.

    Returns: a graph of (n, state, held, stacks) to the steps that were good, and the sums over them and the one that was
        not.
    """
    kept, read = len(state), len(held)

    def body(j: Tensor, good: Tensor, sums: Tensor, n: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        state, rest = tensors[:kept], tensors[kept:]
        of_step = [stack.index_select(0, j.reshape(1)).squeeze(0) for stack in rest[read:]]
        found, well, following = step(state, rest[:read], of_step)
        for before, after in zip(state, following):
            before.copy_(after)
        return j + well.to(j.dtype), well.clone(), sums + found

    def goes_on(j: Tensor, good: Tensor, sums: Tensor, n: Tensor, *tensors: Tensor) -> Tensor:
        return torch.logical_and(j < n, good)

    device = state[0].device
    j, n = torch.zeros((), dtype=torch.int64, device=device), torch.ones((), dtype=torch.int64, device=device)
    good = torch.ones((), dtype=torch.bool, device=device)
    with torch.no_grad():
        sums = torch.zeros_like(step(state, held, [stack[0] for stack in stacks])[0])
    carried, fixed = [j, good, sums], [n, *state, *held, *stacks]
    root = nn.Module()
    root.body = written(body, [*carried, *fixed])
    root.condition = written(goes_on, [*carried, *fixed])
    outer = Graph()
    heads = [outer.placeholder(f"in{i}") for i in range(len(fixed))]
    start = [
        outer.call_function(
            aten.full.default, (list(v.shape), v.dtype == torch.bool), {"dtype": v.dtype, "device": device}
        )
        for v in carried
    ]
    condition, of_body = outer.get_attr("condition"), outer.get_attr("body")
    ran = outer.call_function(
        torch.ops.higher_order.while_loop,
        (condition, of_body, tuple(start), tuple(heads)),
        {"mutated_arg_indices": ",".join(str(4 + i) for i in range(kept))},  # of the state, after three carried and n
    )
    steps, _, total = [outer.call_function(getitem, (ran, i)) for i in range(len(carried))]
    outer.output((steps, total))
    return GraphModule(root, outer)


# ---- compilers

_compiled: dict[Any, Flat] = {}
KEPT = 64
"""Compiled graphs that are kept, for fits of the same shape."""


def compiled(graph: GraphModule, inputs: Sequence[Tensor], **options: Any) -> Flat:
    """A graph, compiled for these shapes; graphs of one code are compiled once.

    Args:
        graph: returns a tuple.
        inputs: of it.
        options: of TorchInductor.
    """
    codes = [part.code for part in graph.modules() if isinstance(part, GraphModule)]
    shapes = ((v.shape, v.stride(), v.dtype, v.device) for v in inputs)
    key = (*codes, *shapes, *sorted(options.items()), torch.get_num_threads())
    if key not in _compiled:
        if len(_compiled) >= KEPT:
            _compiled.pop(next(iter(_compiled)))
        _compiled[key] = _by_inductor(graph, [value.clone() for value in inputs], **options)
    run = _compiled[key]

    def call(*tensors: Tensor) -> Any:
        with torch.no_grad():
            return run(*tensors)

    return call


def _by_inductor(graph: GraphModule, inputs: list[Any], **options: Any) -> Any:
    from torch._guards import TracingContext, tracing
    from torch._inductor import compile as inductor
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    on_cpu = all(value.device.type == "cpu" for value in inputs)
    mode = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True)  # a loop wants shapes to be symbols, in principle
    with tracing(TracingContext(mode)):
        return inductor(graph, inputs, options={"cpp_wrapper": on_cpu, **BY_INDUCTOR, **options})


BY_INDUCTOR = {
    "cpp.use_decompose_tanh": True,
    "cpp.vec_isa_ok": True,  # what the processor says it has, without a trial of the compiler for each
    "cpp_wrapper_build_separate": True,  # the calls of kernels, in C++ too, with less optimisation: one seventh of the time
}


def exactly(call: Flat, inputs: Sequence[Tensor]) -> Flat:
    """A function that computes with whole numbers, compiled where the result is the same bit by bit, on a CPU.

    TorchInductor 2.13 may write past the end of vectors of int64 whose length is no multiple of eight, hence loops that are
    left to the C++ compiler to make vectors of.
    """
    return _beforehand(call, written(call, inputs), inputs, torch.equal, **{"cpp.simdlen": 1})


def of_noise(call: Flat, inputs: Sequence[Tensor]) -> Flat:
    """A function of noise, compiled where that agrees to the accuracy of what it gives, on a CPU."""
    long = any(value.dtype == torch.float64 for value in call(*inputs))
    quantile, accuracy = (normal_quantile, 1e-12) if long else (short_normal_quantile, 1e-5)
    graph = written(call, inputs, {torch.ops.aten.special_ndtri.default: quantile})
    return _beforehand(call, graph, inputs, partial(torch.allclose, rtol=accuracy, atol=accuracy))


def _beforehand(call: Flat, graph: GraphModule, inputs: Sequence[Tensor], same: Any, **options: Any) -> Flat:
    if any(v.device.type != "cpu" for v in inputs) or all(node.op != "call_function" for node in graph.graph.nodes):
        return call
    run = compiled(graph, inputs, cpp_wrapper=False, **options)
    return run if all(map(same, run(*inputs), call(*inputs))) else call


# ---- functions that are called again and again


def check_choice(compiled: bool | str) -> None:
    """Raises: OptionError."""
    if compiled not in (True, False, "traced", "auto"):
        raise OptionError(f"compiled: got {compiled!r}, expected True, False, 'traced' or 'auto'")


def worth(choice: bool | str, amount: float, tracing: float, compiling: float, on_cpu: bool) -> list[bool]:
    """Whether to compile a graph, or to run it as written down: what to try, the best first; nothing: no graph.

    Args:
        choice: True, "traced", False, or "auto": by the amount of work.
        tracing, compiling: amounts from which on each pays, the second one on a CPU.
    """
    if choice != "auto":
        return [choice is True] if choice else []
    if amount >= compiling and on_cpu:
        return [True, False]
    return [False] if amount >= tracing else []


TRACING_PAYS, PAYS = 300, 20_000
"""Calls from which on a graph, and its compilation, are won back by calls that are a millisecond shorter each time."""
AGREES = 1e-4
"""How far values of a graph may be from those of its function, relatively: a check of the graph, not of its rounding."""


def repeated(call: Flat, inputs: Sequence[Tensor], calls: int) -> Flat:
    """A function that will be called so many times on tensors of these shapes: by a graph where that pays and can be.

    Args:
        call: of tensors that it does not change to a tuple of tensors; what else it reads stays as it is, in value or in
            place in memory.
        inputs: of it.
    """
    inputs = [value.contiguous() for value in inputs]
    on_cpu = all(value.device.type == "cpu" for value in inputs)
    for compiles in worth("auto", calls, TRACING_PAYS, PAYS, on_cpu):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch, about itself
                others = [value / 2 if value.is_floating_point() else value for value in inputs]
                graph, constants = traced(call, inputs, others)
                run = (compiled if compiles else lean)(graph, [*inputs, *constants])
                for one, other in zip(run(*others, *constants), call(*others)):
                    if not torch.allclose(one, other, rtol=AGREES, atol=AGREES, equal_nan=True):
                        raise Untraceable("the graph gives other values than the function")
        except Exception as error:  # of torch, its compiler, or a function that is no list of tensor operations
            log.info("no graph: %s: %s", type(error).__name__, first_line(error))
        else:
            return partial(_with, run, constants)
    return call


def _with(run: Flat, constants: list[Tensor], *inputs: Tensor) -> Any:
    with torch.no_grad():
        return run(*(value.contiguous() for value in inputs), *constants)
