"""Reading a lowered step: what is missing, changed, or never updated is told by name."""

import pytest

from crystalmix.train.cerebras.lowered_step import Signature, findings, signature, wanted

PARAMETERS = {"layers.0.kernel": (3, 2), "embedding.weight": (5, 2), "norm.bias": (2,)}


def whole() -> Signature:
    return wanted(PARAMETERS, batch=4, msl=8, pieces=2)


def cirh(told: Signature) -> str:
    """Write a graph with a signature, as the compiler writes it."""
    states = [
        f"tensor<{shape}> {{{'tf.aliasing_output = 3 : i64, ' * (name in told.updated)}"
        f'tf.resource_name = "state.{name}"}}'
        for name, shape in told.states.items()
    ]
    inputs = [f'tensor<{s}> {{cs.input_name = "{n}"}}' for n, s in told.inputs.items()]
    taken = ", ".join(f"%arg{i}: {x} loc(unknown)" for i, x in enumerate(states + inputs))
    given = [f'tensor<{s}> {{cs.output_name = "{n}"}}' for n, s in told.outputs.items()]
    head = f"  func @graph({taken}) -> (tensor<f32>, {', '.join(given)})"
    return f'module  {{\n{head} attributes {{cs.fp16_type = "{told.precision}"}} {{\n  }}\n}}\n'


def test_what_is_written_is_read() -> None:
    assert signature(cirh(whole())) == whole()


def test_a_whole_step_has_no_findings() -> None:
    assert findings(cirh(whole()), whole()) == []


def test_every_parameter_has_two_moments_and_two_powers() -> None:
    states = whole().states
    assert states["model.layers.0.kernel"] == "3x2xf32"
    assert {states[f"optimizer.state.0.{x}"] for x in ("exp_avg", "exp_avg_sq")} == {"3x2xf32"}
    assert states["optimizer.state.2.exp_avg"] == "2xf32"
    assert states["optimizer.state.1.beta2_power"] == "f32"
    assert len(states) == 5 * len(PARAMETERS) + 2 + 2


@pytest.mark.parametrize("text", ["", " \n", "module  {\n}\n"])
def test_an_empty_lowering_is_no_success(text: str) -> None:
    told = findings(text, whole())
    assert len(told) == 1
    assert "empty" in told[0] or "no graph" in told[0]
    assert signature(text) is None


@pytest.mark.parametrize("name", [*whole().states, *whole().inputs, *whole().outputs])
def test_anything_that_is_missing_is_named(name: str) -> None:
    full = whole()
    kept = [{k: v for k, v in x.items() if k != name} for x in (full.inputs, full.states)]
    outputs = {k: v for k, v in full.outputs.items() if k != name}
    less = Signature(*kept, full.updated, outputs, full.precision)
    (told,) = findings(cirh(less), full)
    assert told.endswith(f" {name} is missing")


def test_a_state_that_stays_as_it_was_is_named() -> None:
    full = whole()
    frozen = full.updated - {"model.norm.bias"}
    still = Signature(full.inputs, full.states, frozen, full.outputs, full.precision)
    assert findings(cirh(still), full) == ["state model.norm.bias is never updated"]


def test_another_shape_or_precision_is_told() -> None:
    full = whole()
    outputs = {**full.outputs, "output_rows": "4x3xi32"}
    other = Signature(full.inputs, full.states, full.updated, outputs, "float16")
    assert findings(cirh(other), full) == [
        "output output_rows is 4x3xi32, not 4x2xi32",
        "computes in float16, not bfloat16",
    ]
