"""The warm-start half: planning a restore, checking it whole, and assigning it."""
