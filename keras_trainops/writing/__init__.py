"""Write the weights of a model back in the format and under the names they came in.

`write_back` makes the same plan as `restore` and runs it backwards: `tensors.ModelTensors` is a
checkpoint with the keys of the source and the values of the model, made one at a time, and the
writer of the format stores it. `to_torch` copies the same tensors into a module.
"""
