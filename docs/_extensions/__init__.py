"""What the documentation's build adds to Sphinx: generated pages, links to files, formulas offline."""
