"""Black boxes that ship with the project: the PhiFlow wake flow."""
