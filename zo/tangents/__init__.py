"""Learned tangents: linear models of black boxes, fitted to what probes show, in place of derivatives."""
