"""The front door behind `make pipeline`: checks of the machine, the stages in order, the summary."""
