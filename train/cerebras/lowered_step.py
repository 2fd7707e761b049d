"""Whether a lowered step is the whole step: CIRH text against the model, optimiser and outputs.

A lowering may fail and still look like a success (an empty file and exit code 0), so what came
out is read, not the exit code.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ARGUMENT = re.compile(r"%arg\d+: tensor<([^>]*)> \{([^}]*)\}")
RESULT = re.compile(r'tensor<([^>]*)> \{cs\.output_name = "([^"]*)"\}')
STATE = re.compile(r'tf\.resource_name = "state\.([^"]*)"')
INPUT = re.compile(r'cs\.input_name = "([^"]*)"')
PRECISION = re.compile(r'cs\.fp16_type = "([^"]*)"')
UPDATED = "tf.aliasing_output"
POWERS, MOMENTS = ("beta1_power", "beta2_power"), ("exp_avg", "exp_avg_sq")
Shapes = dict[str, str]  # name -> dimensions and type as MLIR writes them, as in 64x170xf32


@dataclass(frozen=True)
class Signature:
    """What a lowered step takes, keeps and gives back."""

    inputs: Shapes
    states: Shapes
    updated: frozenset[str]  # the states that the step gives back changed
    outputs: Shapes
    precision: str


def signature(text: str) -> Signature | None:
    """Read the signature of a step's graph; None where there is no graph."""
    head = next((x for x in text.splitlines() if x.lstrip().startswith("func @graph(")), None)
    if head is None:
        return None
    inputs: Shapes = {}
    states: Shapes = {}
    updated: set[str] = set()
    for shape, attributes in ARGUMENT.findall(head):
        if state := STATE.search(attributes):
            states[state[1]] = shape
            updated |= {state[1]} if UPDATED in attributes else set()
        elif name := INPUT.search(attributes):
            inputs[name[1]] = shape
    outputs = {name: shape for shape, name in RESULT.findall(head)}
    precision = PRECISION.search(head)
    return Signature(inputs, states, frozenset(updated), outputs, precision[1] if precision else "")


def wanted(parameters: Mapping[str, Sequence[int]], batch: int, msl: int, pieces: int) -> Signature:
    """Return the signature that a whole training step must have.

    parameters: names and shapes in the optimiser's order; pieces: lines of the schedule.
    """
    states = {f"model.{name}": _shape(shape, "f32") for name, shape in parameters.items()}
    for number, shape in enumerate(parameters.values()):
        states |= {f"optimizer.state.{number}.{x}": _shape(shape, "f32") for x in MOMENTS}
        states |= {f"optimizer.state.{number}.{x}": "f32" for x in POWERS}
    clocks = ["", "_scheduler.", *(f"_scheduler._schedulers.{n}." for n in range(pieces))]
    states |= {f"schedulers.0.{clock}last_epoch": "i64" for clock in clocks}
    rows = _shape((batch, msl), "i32")
    names = ("input_ids", "attention_mask", "labels")
    inputs = {f"input_{name}": rows for name in names}
    inputs["input_rows"] = _shape((batch, 2), "i32")
    outputs = {f"output_{name}": "f32" for name in ("loss", "gradient_norm", "learning_rate")}
    outputs["output_row_losses"] = _shape((batch,), "f32")
    outputs["output_rows"] = _shape((batch, 2), "i32")
    return Signature(inputs, states, frozenset(states), outputs, "bfloat16")


def findings(text: str, whole: Signature) -> list[str]:
    """Return one line for each thing that a lowered step lacks, or has otherwise."""
    if not text.strip():
        return ["the lowered step is empty: an operation was not lowered"]
    lowered = signature(text)
    if lowered is None:
        return ["the lowered step holds no graph"]
    lines = _compared("input", lowered.inputs, whole.inputs)
    lines += _compared("state", lowered.states, whole.states)
    lines += _compared("output", lowered.outputs, whole.outputs)
    unchanged = sorted(whole.updated & set(lowered.states) - lowered.updated)
    lines += [f"state {name} is never updated" for name in unchanged]
    if lowered.precision != whole.precision:
        lines.append(
            f"computes in {lowered.precision or 'no half precision'}, not {whole.precision}"
        )
    return lines


def _compared(kind: str, shapes: Shapes, whole: Shapes) -> list[str]:
    lines = [f"{kind} {name} is missing" for name in whole if name not in shapes]
    for name, shape in whole.items():
        if shapes.get(name, shape) != shape:
            lines.append(f"{kind} {name} is {shapes[name]}, not {shape}")
    return lines


def _shape(dimensions: Sequence[int], kind: str) -> str:
    return "x".join([*map(str, dimensions), kind])
