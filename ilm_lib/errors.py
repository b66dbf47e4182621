"""What the project refuses: errors that a user can mend, and that are shown without a traceback.

Every such error is one message that names the file, line, key or argument, what is wrong with it and what to do, in
`LONGEST` characters or fewer beside the paths in it. Any other exception is a fault of ours and keeps its traceback.
"""

LONGEST = 300


class Refusal(Exception):
    """Something given or found cannot be used. Its subclasses are what is raised."""

    def _render_traceback_(self) -> list[str]:
        """IPython's hook: a notebook shows the message alone."""
        return [f"{type(self).__name__}: {self}"]
