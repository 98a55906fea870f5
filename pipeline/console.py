"""Entry point of `itemsage`: runs pipeline/cli.py, whose imports take a second, and hears Ctrl-C from the first on."""

from __future__ import annotations

import os
import signal

from schemas.errors import INTERRUPTED


def main() -> None:
    """Import the front door and run it."""
    # What our caller has us ignore, as nohup does, stays ignored.
    is_heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_heard:
        signal.signal(signal.SIGINT, _end)
    from pipeline import cli  # noqa: PLC0415 (not before Ctrl-C is heard)
    from schemas.command_line import exit_code_of_errors  # noqa: PLC0415

    with exit_code_of_errors():
        if is_heard:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        cli.main()


def _end(number: int, _: object) -> None:
    """Nothing is started yet; an exception would be lost in libraries that take any for a failed import."""
    print(f"error: {INTERRUPTED}", flush=True)
    os._exit(128 + number)


if __name__ == "__main__":
    main()
