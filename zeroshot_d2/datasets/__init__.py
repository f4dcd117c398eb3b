"""What is known of public releases: class lists, folders, preparations. Importing registers names and reads nothing."""

from .builtin import register_all

register_all()
