"""HDF5 files, as Keras stores weights in them."""
