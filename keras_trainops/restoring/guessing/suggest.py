"""Suggest rename rules from names, shapes and order."""

from __future__ import annotations

import keras

from keras_trainops import paths
from keras_trainops.restoring.guessing.guess import guess
from keras_trainops.restoring.guessing.suggestion import Suggestion
from keras_trainops.restoring.naming.table import NameTable
from keras_trainops.restoring.planning.options import Options, choose
from keras_trainops.restoring.planning.plan import require_variables
from keras_trainops.restoring.restore import Source, open_source


def suggest_rename(
    model: keras.Model,
    source: Source,
    *,
    include: paths.Patterns = None,
    exclude: paths.Patterns = None,
) -> Suggestion:
    r"""Suggest rename rules that lead the keys of `source` to the variables of `model`.

    The suggestion rests on names, shapes and order; no tensor is read. Numbered blocks are aligned
    first, and no pair crosses them. The layers of aligned blocks are paired for all blocks at once:
    by what their names say about their role (`q_proj`, `query`), then by shapes that fit nothing
    else, then by order. Tensors may have PyTorch's layout, or hold several variables, as a fused
    query, key and value; a `config.json` beside the file is read. What neither names nor shapes
    tell is a question with the choices as code. Ambiguous keys are listed and not paired. Rules
    that rest on order are marked: check them, and compare the outputs of the models once.

    Args:
        model: A built Keras model.
        source: The source, as for `restore`.
        include: Patterns (see `keras_trainops.paths`) of the variables to find keys for; None for
            all.
        exclude: Patterns of the variables to leave out.

    Returns:
        The suggestion. `print` it, and use its `rules` as `rename=` and its `adapt` as `adapt=`;
        `restore` explains the templates.

    Raises:
        RestoreError: If the source cannot be read or the model has no variables yet.
        ValueError: If an argument has the wrong type or value.

    Example:
        >>> import keras, numpy as np, keras_trainops as kt
        >>> layers = [keras.layers.Dense(n, name=f"block{i}_up") for i, n in enumerate((5, 6, 7))]
        >>> model = keras.Sequential([keras.Input((4,)), *layers])
        >>> theirs = {f"encoder/layer/{i}/up/w": np.ones((i + 4, i + 5)) for i in range(3)}
        >>> print(kt.suggest_rename(model, theirs))
        rename = {
            # by names and shapes
            r"encoder/layer/(\d+)/up/w": r"block\1_up/kernel",
        }
        # without a key: block{0..2}_up/bias
    """
    require_variables(model)
    with open_source(source, model) as checkpoint:
        table = NameTable(model, checkpoint)
        problems = choose(table.targets, Options(include=include, exclude=exclude))
        if problems:
            raise ValueError("\n".join(problems))
        return guess(model, table, checkpoint).suggestion()
