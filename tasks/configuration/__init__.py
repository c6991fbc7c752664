"""The configuration of a run: settings, and the code that they name, which is executed only if trusted.

    from tasks.configuration import Count, Positive

Names are imported when they are first used: those on the command line (`names`) need neither pydantic nor
torch.
"""

from blackbox.faces import named_by_stub

__getattr__, __all__ = named_by_stub(__name__)
