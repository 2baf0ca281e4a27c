"""The gate against slow-downs: verdicts on what was measured, kernels that changed and their price, how it is told."""
