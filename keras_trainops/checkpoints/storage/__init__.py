"""Files on disk: opening, limits, plain bytes, zip archives and shards."""
