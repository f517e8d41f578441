"""Who says which answer is better, and the store that never buys a judgment twice."""
