"""Which stage is the policy in? Algorithm 1 and its sequential test."""
