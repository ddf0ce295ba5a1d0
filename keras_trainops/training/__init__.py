"""The training half: a model whose training step is configurable."""
