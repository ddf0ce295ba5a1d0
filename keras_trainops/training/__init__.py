"""Training: a model whose training step is configurable."""
