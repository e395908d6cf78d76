"""The one exception type whose message is meant for people: it names the file, the field and the remedy.

The command line prints it without a traceback; everything else that is raised is a bug in memr1.
"""


class MemR1Error(Exception):
    """Bad input or a missing resource. The message says what was wrong, where, and what to do."""
