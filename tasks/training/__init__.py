"""One method trains one network: the loop, what a stage keeps, and how it is judged."""
