"""What only a CPU needs: attention by blocks, fused steps, gradients in place, less kept.

Each stood trial in `benchmarks/ablation.py`: it gives 3 % of a step's time or 5 % of its peak
memory. `fused_layers` (in `fused`) and `lean_pass` (in `lean`) are the two ways in, and neither
leaves a trace in the model.
"""
