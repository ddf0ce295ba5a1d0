"""Read the tensors of a plan and assign them, all or nothing."""
