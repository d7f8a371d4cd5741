"""All comparisons by name, in the order of the page."""

from benchmarks.speed import growth, loading, neighbours, neuron_layer, objectives, stack, start_up, training_step
from benchmarks.speed.comparison import Comparison

COMPARISONS: dict[str, Comparison] = {
    **neuron_layer.COMPARISONS,
    **training_step.COMPARISONS,
    **objectives.COMPARISONS,
    **growth.COMPARISONS,
    **neighbours.COMPARISONS,
    **loading.COMPARISONS,
    **stack.COMPARISONS,
    **start_up.COMPARISONS,
}
