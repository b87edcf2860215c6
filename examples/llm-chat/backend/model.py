"""A stand-in for a local language model: no weights, no network, the same answer every time."""


class EchoModel:
    """Answers with what it was told."""

    def __init__(self, name: str) -> None:
        self.name = name

    def answer(self, message: str) -> str:
        """Return the reply to ``message``."""
        return f"You said: {message}"
