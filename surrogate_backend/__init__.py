"""The learned twin of the real backend: collection, model, fit, fidelity, batched backend; nothing here yet."""
