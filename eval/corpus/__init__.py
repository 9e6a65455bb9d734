"""A corpus encoded once, kept as parquet shards, and searched."""
