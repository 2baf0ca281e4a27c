"""How a number is taken: isolated processes, a stop rule, shuffled blocks with a sentinel."""
