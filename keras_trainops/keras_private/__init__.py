"""Every private use of Keras that is the same on all backends.

Private API that only one backend needs is in `backends`. `tests/test_keras_private.py` has a
descriptively named test for each use, which fails if a new Keras changes the behaviour.
"""

from keras_trainops.keras_private.data import EpochData, batches, has_unseeded_shuffle
from keras_trainops.keras_private.graph import (
    first_variables_after,
    idf_of,
    operation_before,
    vocabulary_layers,
    vocabulary_of,
)
from keras_trainops.keras_private.model import (
    all_layers,
    build_metrics,
    call_in_training,
    compute_loss,
    forget_losses,
    global_seed,
    is_functional,
    kernel_of,
    own_variables,
    random_seed,
    seeds,
    start_at_epoch,
    track_loss,
    unbuilt_layers,
)
from keras_trainops.keras_private.optimizer_steps import (
    accumulate,
    accumulators,
    applying,
    batch_count,
    overwrite_with_averages,
    replaced,
    slots,
    step,
    trained_by,
    update_averages,
)
from keras_trainops.keras_private.optimizers import (
    OptimizerWrapper,
    all_of,
    excluded_from_decay,
    gradient_sums,
    innermost,
    inside,
    is_multi,
    optimizer_variables,
    shadowed,
    take_over,
    track_apart,
    unbuilt,
    with_another_inside,
)
from keras_trainops.keras_private.saving import (
    SavingWalk,
    keep_in_clones,
    saving_walk,
    serialized_function,
)
from keras_trainops.keras_private.version import warn_if_untested

__all__ = [
    "EpochData",
    "OptimizerWrapper",
    "SavingWalk",
    "accumulate",
    "accumulators",
    "all_layers",
    "all_of",
    "applying",
    "batch_count",
    "batches",
    "build_metrics",
    "call_in_training",
    "compute_loss",
    "excluded_from_decay",
    "first_variables_after",
    "forget_losses",
    "global_seed",
    "gradient_sums",
    "has_unseeded_shuffle",
    "idf_of",
    "innermost",
    "inside",
    "is_functional",
    "is_multi",
    "keep_in_clones",
    "kernel_of",
    "operation_before",
    "optimizer_variables",
    "overwrite_with_averages",
    "own_variables",
    "random_seed",
    "replaced",
    "saving_walk",
    "seeds",
    "serialized_function",
    "shadowed",
    "slots",
    "start_at_epoch",
    "step",
    "take_over",
    "track_apart",
    "track_loss",
    "trained_by",
    "unbuilt",
    "unbuilt_layers",
    "update_averages",
    "vocabulary_layers",
    "vocabulary_of",
    "warn_if_untested",
    "with_another_inside",
]

warn_if_untested()
