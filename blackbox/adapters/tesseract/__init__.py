"""The shelf of Tesseracts: components with a schema of their own as black boxes."""

from blackbox.adapters.tesseract.tesseract import Tesseract

__all__ = ["Tesseract"]
