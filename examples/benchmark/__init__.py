"""How fast is the flow? `python -m benchmark --help` says what can be measured."""
