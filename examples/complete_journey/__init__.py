"""The Complete Journey: a year of a supermarket's baskets through the whole pipeline."""
