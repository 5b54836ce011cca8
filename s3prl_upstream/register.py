"""Register daisy's entries beside s3prl's own, in this process."""

from __future__ import annotations

from daisy.errors import UsageError


def register() -> None:
    """Make ``daisy_local``, ``daisy_url`` and ``daisy_mini`` known to ``s3prl.hub``; calling it again changes nothing.

    Raises:
        UsageError: where s3prl is not installed.
    """
    try:
        import s3prl.hub
    except ImportError as error:
        raise UsageError(f"s3prl cannot be imported ({error}): pip install 'daisy-speech[s3prl]'") from None
    from s3prl_upstream import hubconf

    for entry in (hubconf.daisy_local, hubconf.daisy_url, hubconf.daisy_mini):
        setattr(s3prl.hub, entry.__name__, entry)
