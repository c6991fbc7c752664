"""What names code: parsed once into what it is, and executed only where this user trusts it."""
