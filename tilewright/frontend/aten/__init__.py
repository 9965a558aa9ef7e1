"""One lowering for each ATen operator, by family."""
