"""Where the console script and `celery cacheworkers` find the command line."""

from cacheworkers.ops.cli import main

command = run = main
