"""The synthetic shop: drawn products, users with a style, clicks, references."""
