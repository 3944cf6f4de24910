"""transformers without its bars and warnings."""

import contextlib
import io
import warnings
from collections.abc import Iterator

import transformers


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Inside the block transformers neither draws bars nor warns: what matters becomes an error.

    The bar of unpacking a GGUF file cannot be switched off, so what is written to standard error meanwhile is dropped.
    """
    verbosity = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()
