"""How other libraries store the tensor of each Keras variable.

`layers.layouts_of` returns the `Layout` of every variable of a model. A layout lists the `Reading`s
of one tensor: the ways to take it as the variable. Names play no part in that; `fused` judges by
name what shapes cannot tell.
"""
