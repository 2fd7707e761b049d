"""Footprint: the memory and disk of a training, from settings alone.

Activations are those that autograd keeps of one forward pass, tensor by tensor as `model` makes
them; an allocator's slack and a library's work space come on top.
"""

from dataclasses import asdict, dataclass

from crystalmix.train.model.crystal import ModelSettings, parameters_count

SINGLE, BRAIN = 4, 2  # bytes of a float32 and of a bfloat16
MOMENTS = 2  # AdamW's


@dataclass(frozen=True)
class Pass:
    """One forward pass of a process: its rows of msl tokens, and how they are computed."""

    rows: int
    msl: int
    dtype: str = "float32"
    recompute: bool = False


@dataclass(frozen=True)
class Memory:
    """Bytes that one process holds; gathered: whole copies of what is sharded, while in use."""

    weights: int
    gradients: int
    moments: int
    activations: int
    gathered: int

    @property
    def total(self) -> int:
        """Return the sum."""
        return sum(asdict(self).values())


def memory(settings: ModelSettings, pass_: Pass, processes: int, *, sharded: bool) -> Memory:
    """Estimate what each process holds at its peak.

    Weights, gradients and moments are float32; FSDP shares
    them out and gathers a layer while another is on its way, DDP keeps them whole.
    """
    count = parameters_count(settings)
    share = -(-count // processes) if sharded else count
    layer, top = _layer(settings), count - settings.num_hidden_layers * _layer(settings)
    gathered = SINGLE * (2 * layer + top) if sharded and processes > 1 else 0
    return Memory(
        weights=SINGLE * share,
        gradients=SINGLE * share,
        moments=SINGLE * MOMENTS * share,
        activations=activations(settings, pass_),
        gathered=gathered,
    )


def activations(settings: ModelSettings, pass_: Pass) -> int:
    """Return the bytes that autograd keeps between a forward pass and its backward pass.

    Of each token and layer: both inputs of the LayerNorms in float32; in the dtype their outputs
    (autocast makes a copy for each kernel that reads them), q, k, v, what attention gives, and four
    vectors of filter_size. In bfloat16 a copy of each kernel too. With recompute only the inputs
    of layers are kept, and all this of one layer at a time.
    """
    hidden, filters, heads = settings.hidden_size, settings.filter_size, settings.num_heads
    brain, layers, rows = pass_.dtype == "bfloat16", settings.num_hidden_layers, pass_.rows
    size = BRAIN if brain else SINGLE
    layer = 2 * (hidden + 2) * SINGLE  # mean and deviation beside the input
    layer += ((5 if brain else 2) + 3 + 1) * hidden * size + 4 * filters * size
    if settings.attention == "matmul":
        layer += heads * pass_.msl * (SINGLE + (BRAIN if brain else 0)) + pass_.msl // rows
    else:
        layer += hidden * size + heads * SINGLE
    top = 2 * (hidden + 1) * SINGLE  # the last norm's input, and the gradient of its output
    kernels = layers * (4 * hidden**2 + 3 * hidden * filters)
    head = SINGLE * settings.vocab_size * hidden  # its gradient, made with the losses
    inputs = layers * hidden * SINGLE + layer if pass_.recompute else layers * layer
    return rows * pass_.msl * (inputs + top) + head + (BRAIN * kernels if brain else 0)


def checkpoint_bytes(settings: ModelSettings) -> int:
    """Return the bytes of one checkpoint: weights and moments in float32."""
    return parameters_count(settings) * SINGLE * (1 + MOMENTS)


def _layer(settings: ModelSettings) -> int:
    """Return the parameters of one layer."""
    hidden, filters = settings.hidden_size, settings.filter_size
    return 4 * hidden**2 + 3 * hidden * filters + 9 * hidden + 2 * filters
