"""Worked examples of training with a DeepMI curriculum: `python -m examples.NAME`."""
