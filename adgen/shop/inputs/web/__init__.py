"""The web, as far as an import goes there: links of a feed are other people's, and may lead anywhere."""
