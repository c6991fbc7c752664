"""Programs that call the network from inside of their own loop, as black boxes."""

from blackbox.adapters.hosted.client_files import write_client
from blackbox.adapters.hosted.hosted import Hosted
from blackbox.adapters.hosted.program_call import Call
from blackbox.adapters.hosted.programs import HostCounts
from blackbox.adapters.hosted.record import CallRecord, HostedRun
from blackbox.adapters.hosted.serve import serve as serve_program

__all__ = ["Call", "CallRecord", "HostCounts", "Hosted", "HostedRun", "serve_program", "write_client"]
