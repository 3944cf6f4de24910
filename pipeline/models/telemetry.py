"""OpenVINO that tells nobody of its use.

`import openvino` and each `openvino.convert_model` send events to Google Analytics for Intel, by the package
`openvino_telemetry`, unless the user has run `opt_in_out --opt_out`, which sends one too. What corpusmill computes, and
that it computes, is its user's business.
"""

import sys


def without_telemetry() -> None:
    """Say it before `openvino` is imported: in this process its telemetry is as if it were not installed."""
    if "openvino_telemetry" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment] # Python's own word for: not to be found
