"""What reproduces the results in the documentation: `python -m experiments --help`, from the folder examples."""
