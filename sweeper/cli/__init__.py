"""The command line: thin, every command calls one room."""


def main() -> None:
    """Run the command that was typed; what it needs is imported then."""
    from sweeper.cli import app

    app.main()
