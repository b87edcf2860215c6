"""Is what is made offline what a full online build would have made? See tests/corpus/README.md."""
