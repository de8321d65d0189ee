"""HSTU inference for real: model, memory manager, engine, calibration; the measured and the modelled rung."""
