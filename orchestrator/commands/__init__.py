"""The commands of `tutti`, one file for what belongs together; heavy packages are imported inside them."""
